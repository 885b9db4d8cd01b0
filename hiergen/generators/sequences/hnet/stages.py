"""The stages of H-Net: an encoder, the chunks that it is cut into, what the inner stage makes of them, and a decoder.

    e = encoder(x);   chunks = router(e);   z = inner(e at the boundaries);   y = upsample(smooth(z)) c + W e + b;   decoder(y)

The innermost stage is one stack. An inner stage is at least as wide as the one around it: a learned vector is appended to what enters it,
the same for all positions, and as many channels are cut off what leaves it.

Letters: `b` batch, `n` symbols of the stage, `d` channels.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.sequences.hnet.blocks import RunFn, Stack, StackSizes, StackState
from hiergen.generators.sequences.hnet.chunking import (
    Chunks,
    QueryFrom,
    Router,
    RouterState,
    SmootherPrecision,
    chunk_index,
    smooth,
    straight_through,
    take,
    upsample,
)
from hiergen.nn.running.precision import KeepsFloat32, without_autocast


class ChunkRules(TypedDict):
    """How the stages cut and smooth (`HNet`)."""

    query_from: QueryFrom
    smoother: SmootherPrecision


class Residual(KeepsFloat32, nn.Linear):
    """The linear layer around the inner stage. Its weights, input and output are at least float32."""

    def forward(self, input: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        with without_autocast(input.device):
            return super().forward(input.to(self.weight.dtype))


class StageState:
    """What one stage keeps of the symbols so far.

    Attributes:
        stacks: States of the encoder and the decoder; of the innermost stage only the first.
        router: State of router and smoother; None in the innermost stage.
    """

    def __init__(self, stacks: list[StackState], router: RouterState | None) -> None:
        self.stacks, self.router = stacks, router


class Stage(nn.Module):
    """A stage of H-Net without the ones inside it.

    Args:
        words: Layouts of encoder and decoder; of the innermost stage that of its only stack.
        sizes: Sizes of the layers.
        outer_dim: Channels of what enters and leaves.
        rules: How chunks are cut and smoothed.
    """

    def __init__(self, words: list[str], sizes: StackSizes, outer_dim: int, rules: ChunkRules) -> None:
        super().__init__()
        dim, wider = sizes.dim, sizes.dim - outer_dim
        if wider < 0:
            raise ValueError(f"dims holds {dim} inside of {outer_dim}, expected widths that do not fall inwards")
        self.outer_dim, self.rules = outer_dim, rules
        self.padding = nn.Parameter(torch.zeros(wider)) if wider else None
        self.encoder = Stack(words[0], sizes)
        self.decoder = Stack(words[1], sizes) if len(words) > 1 else None
        if self.decoder is not None:
            self.router = Router(dim, query_from=rules["query_from"])
            self.residual = Residual(dim, dim)

    def new_state(self, batch: int, num_slots: int, device: torch.device) -> StageState:
        """Return the state before the first symbols, for up to `num_slots` of each row."""
        stacks = [
            stack.new_state(batch, num_slots, device) for stack in (self.encoder, self.decoder) if stack is not None
        ]
        return StageState(stacks, None if self.decoder is None else RouterState(batch, device))


def run_stages(
    stages: list[Stage],
    x: Float[Tensor, "b n d"],
    *,
    lengths: Int[Tensor, " b"] | None = None,
    starts: Bool[Tensor, "b n"] | None = None,
    states: list[StageState] | None = None,
    run: RunFn | None = None,
) -> tuple[Float[Tensor, "b n d"], list[Chunks]]:
    """Return the output of the first of some nested stages, and the chunks of each but the innermost, outer ones first.

    Where no chunk begins in a group of symbols, the inner stages are not run, and have no entry.

    Args:
        stages: Stages, outer ones first.
        x: Symbols; with states, the next of each row.
        lengths: Number of symbols of each row that are no padding, 0 to n; None is all.
        starts: Where packed sequences begin; not together with states.
        states: State of each stage, advanced in place.
        run: Calls the layers; None calls them directly.
    """
    stage, state = stages[0], None if states is None else states[0]
    if stage.padding is not None:
        x = torch.cat((x, stage.padding.to(x.dtype).expand(*x.shape[:2], -1)), dim=-1)
    encoder_state = None if state is None else state.stacks[0]
    encoded = stage.encoder(x, lengths=lengths, starts=starts, state=encoder_state, run=run)
    if stage.decoder is None:
        return encoded[..., : stage.outer_dim], []
    routed = None if state is None else state.router
    chunks = stage.router(encoded, lengths=lengths, starts=starts, state=routed)
    inner_states = None if states is None else states[1:]
    laid_out, inner_chunks = _run_inner(stages, encoded, chunks, starts, routed, inner_states, run)
    y = laid_out * straight_through(chunks)[..., None] + stage.residual(encoded)
    decoder_state = None if state is None else state.stacks[1]
    y = stage.decoder(y.to(encoded.dtype), lengths=lengths, starts=starts, state=decoder_state, run=run)
    return y[..., : stage.outer_dim], [chunks, *inner_chunks]


def _run_inner(
    stages: list[Stage],
    encoded: Float[Tensor, "b n d"],
    chunks: Chunks,
    starts: Tensor | None,
    routed: RouterState | None,
    states: list[StageState] | None,
    run: RunFn | None,
) -> tuple[Float[Tensor, "b n d"], list[Chunks]]:
    """Return for each symbol what the inner stages make of the chunk it is in, and the chunks of those."""
    before = None if routed is None else routed.smooth
    counts = chunks.counts
    most = int(counts.max())
    if not most:
        # All symbols of the group are in chunks that began before it.
        assert before is not None
        return before[:, None].expand(-1, encoded.shape[1], -1), []
    index = chunk_index(chunks, most)
    if starts is not None:
        # What stands behind the chunks of a row begins no sequence.
        starts = starts.gather(1, index) & (torch.arange(most, device=index.device) < counts[:, None])
    inner, inner_chunks = run_stages(
        stages[1:], take(encoded, index), lengths=counts, starts=starts, states=states, run=run
    )
    probability, precision = chunks.probability.gather(1, index), stages[0].rules["smoother"]
    smoothed = smooth(inner, probability, counts, starts=starts, before=before, precision=precision)
    if routed is not None:
        routed.smooth = smoothed[:, -1]
    return upsample(smoothed, chunks.is_boundary, before), inner_chunks
