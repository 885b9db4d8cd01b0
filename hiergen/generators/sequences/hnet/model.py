"""H-Net: a causal model of sequences that finds the units it works on.

An outer stage reads symbols, cheaply, and marks where chunks of them begin; an inner stage, which is larger, reads one vector per chunk;
a decoder gives every symbol what is known of the chunk that it is in. Stages nest, and all are trained at once to predict the next symbol:

    loss = cross-entropy + ratio_weight * sum over stages of the ratio loss, which wants N symbols per chunk

Without stages around it (`layout=["T6"]`) it is a plain transformer, or a plain Mamba-2.

Letters: `b` batch, `n` ids, `r` rows of logits (n, with a class n + 1), `v` vocabulary, `d` channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.conditioning import ClassPathEmbedding
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.hnet.blocks import StackSizes
from hiergen.generators.sequences.hnet.chunking import (
    Chunks,
    QueryFrom,
    RatioOver,
    SmootherPrecision,
    boundaries_over_symbols,
    ratio_loss,
)
from hiergen.generators.sequences.hnet.initialization import initialize
from hiergen.generators.sequences.hnet.stages import ChunkRules, Stage, StageState, run_stages
from hiergen.generators.sequences.prediction import Prediction
from hiergen.nn.blocks.layers import swiglu_dim

#: Bytes per token of GPT-2 on the data of the paper: N_GPT of its learning rates.
_GPT_BYTES = 4.6


class HNet(SequenceModel):
    """H-Net, of text or class-conditional over the levels of a discrete tokenizer.

    Args:
        layout: `[encoder, inner, decoder]`, where inner is of the same form, or `[main]`; a word is made of letters with counts: m is
            Mamba-2, t attention, M and T the same with an MLP. `["m4", ["T22"], "m4"]` has one stage of chunks.
        dims: Channels of each stage, outer ones first; they do not fall inwards.
        num_heads: Attention heads of each stage.
        rotary_dims: Channels of a head that are turned by the position, of each stage; None is half of a head.
        windows: Number of earlier symbols, or chunks, that attention sees besides the one it is at, of each stage; None is all.
        ffn_dims: Hidden channels of the MLPs of each stage; None is 8/3 of its width, rounded up to a multiple of 128.
        state_dim: State channels of Mamba-2.
        conv_width: Symbols that the convolution of Mamba-2 reads.
        expand: Inner channels of Mamba-2 over its width.
        head_dim: Channels of a head of Mamba-2.
        chunk_size: Tokens that Mamba-2 computes from each other at once; it decides the speed, not the numbers.
        targets: Wanted symbols per chunk of each stage but the innermost, above 1; None is 6 for one of them, 3 for more.
        ratio_weight: Weight of the ratio losses.
        ratio_over: What the ratio loss averages over: "valid" symbols, or "padded", as in the released program.
        query_from: "previous" makes the router's query of the previous symbol and its key of the current one, as the released weights
            need; "current" the other way round, as the paper has it.
        smoother: Precision of the smoother, "float32" or, for comparisons with the released program, "bfloat16".
        residual_bias: Start of the biases around the inner stages: "zero", or "uniform" as in the released program.
        vocab_size: Number of ids of text.
        level_specs: The tokenizer's levels as JSON (`specs_to_json`), all discrete, of one vocabulary; None for text.
        num_classes: Number of classes; None for text. The class is an embedding in front of the sequence.
        class_dropout: Probability that `loss` replaces a label by "no class".
        class_hierarchy: The classes as a `ClassHierarchy` in JSON; None gives each class a row of its own.

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        H-Net, arXiv:2507.07955. Where paper and released program differ, the program decides, but for the names above.
    """

    _no_split_modules = ["HNetBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["residual"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        layout: Sequence[Any],
        dims: Sequence[int],
        num_heads: Sequence[int],
        rotary_dims: Sequence[int] | None = None,
        windows: Sequence[int | None] | None = None,
        ffn_dims: Sequence[int] | None = None,
        state_dim: int = 128,
        conv_width: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        chunk_size: int = 64,
        targets: Sequence[float] | None = None,
        ratio_weight: float = 0.03,
        ratio_over: str = "valid",
        query_from: str = "previous",
        smoother: str = "float32",
        residual_bias: str = "zero",
        vocab_size: int = 256,
        level_specs: Sequence[dict[str, Any]] | None = None,
        num_classes: int | None = None,
        class_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        num_ids = self._read_task(level_specs, num_classes, vocab_size, class_dropout)
        words = nested_words(layout)
        self.targets = _read_targets(targets, len(words) - 1)
        for name, value, known in (
            ("ratio_over", ratio_over, get_args(RatioOver)),
            ("query_from", query_from, get_args(QueryFrom)),
            ("smoother", smoother, get_args(SmootherPrecision)),
            ("residual_bias", residual_bias, ("zero", "uniform")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {known}")
        mamba = {"state_dim": state_dim, "conv_width": conv_width, "expand": expand}
        mamba |= {"head_dim": head_dim, "chunk_size": chunk_size}
        sizes = _stage_sizes(len(words), dims, num_heads, rotary_dims, windows, ffn_dims, mamba)
        rules = cast(ChunkRules, {"query_from": query_from, "smoother": smoother})
        self.embedding = nn.Embedding(num_ids, dims[0])
        self.class_embedding = self._make_class_embedding(num_classes, dims[0], class_hierarchy)
        outer = [dims[0], *dims]
        self.stages = nn.ModuleList(
            Stage(words[index], sizes[index], outer[index], rules) for index in range(len(words))
        )
        self.head = nn.Linear(dims[0], num_ids, bias=False)
        initialize(self._stages, has_zero_residual=residual_bias == "zero")
        nn.init.normal_(self.head.weight, std=0.02)
        if isinstance(self.class_embedding, ClassPathEmbedding):
            self.class_embedding.reset_parameters()

    @property
    def _stages(self) -> list[Stage]:
        return cast("list[Stage]", list(self.stages))

    def rate_multipliers(self) -> dict[str, float]:
        """Return factors of the learning rate by the first parts of parameters' names: outer stages learn faster.

        Stage s has sqrt(4.6 (product of N from s on) / (product of all N) D / D_s), D the innermost width; it owns its layers, router and
        residual, and the vector that widens into it. Embeddings and the head belong to the first stage. A model without chunks has none.

        Source:
            H-Net, arXiv:2507.07955: (2.63, 0.88) for one stage of chunks at L, (3.03, 1.43, 0.72) for two at XL.
        """
        if not self.targets:
            return {}
        dims, total = self.config["dims"], math.prod(self.targets)
        rates = [
            math.sqrt(_GPT_BYTES * math.prod(self.targets[stage:]) / total * dims[-1] / dim)
            for stage, dim in enumerate(dims)
        ]
        found = {f"stages.{stage}": rate for stage, rate in enumerate(rates)}
        return {**found, **dict.fromkeys(("embedding", "class_embedding", "head"), rates[0])}

    def predict(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
    ) -> Prediction:
        """Return the logits, the weighted ratio losses as "ratio", and for the log "compression_0", the symbols per chunk of each stage."""
        logits, chunks = self._read(ids, lengths, condition, starts)
        over, weight = self.config["ratio_over"], self.config["ratio_weight"]
        ratios = [ratio_loss(found, target, over) for found, target in zip(chunks, self.targets, strict=True)]
        losses = {"ratio": weight * torch.stack(ratios).sum()} if ratios else {}
        return Prediction(logits, losses, {f"compression_{k}": found.compression for k, found in enumerate(chunks)})

    @torch.no_grad()
    def find_boundaries(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
    ) -> list[Bool[Tensor, "b r"]]:
        """Return for each stage, outer ones first, at which symbols its chunks begin; arguments as in `forward`.

        With a class, the first symbol is the class.
        """
        return boundaries_over_symbols(self._read(ids, lengths, condition, starts)[1])

    def start_cache(self, batch: int, num_ids: int) -> list[StageState]:
        # An inner stage reads one chunk per symbol at most.
        num_slots = num_ids + (self.class_embedding is not None)
        return [stage.new_state(batch, num_slots, self.device) for stage in self._stages]

    @torch.no_grad()
    def prefill(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None,
        cache: list[StageState],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "b v"]:
        logits, _ = self._read(ids, lengths, condition, None, cache)
        if lengths is None:
            return logits[:, -1]
        last = lengths - 1 if condition is None else lengths
        return logits[torch.arange(len(logits), device=logits.device), last]

    @torch.no_grad()
    def step(self, ids: Int[Tensor, " b"], cache: list[StageState]) -> Float[Tensor, "b v"]:
        x = self.embedding(ids[:, None])
        return self.head(run_stages(self._stages, x, states=cache)[0])[:, 0]

    def _read(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        condition: Tensor | None,
        starts: Tensor | None,
        cache: list[StageState] | None = None,
    ) -> tuple[Float[Tensor, "b r v"], list[Chunks]]:
        self.check_inputs(ids, lengths, condition, starts)
        x = self.embedding(ids)
        if self.class_embedding is not None:
            if starts is not None:
                raise ValueError("starts was given, but sequences with a class in front are not packed: leave it out")
            x = torch.cat((self.class_embedding(condition)[:, None], x), dim=1)
            lengths = None if lengths is None else lengths + 1
        if lengths is not None and not bool((lengths > 0).all() & (lengths <= x.shape[1]).all()):
            raise ValueError(f"lengths span {lengths.min()} to {lengths.max()}, expected 1 to {x.shape[1]}")
        y, chunks = run_stages(self._stages, x, lengths=lengths, starts=starts, states=cache, run=self.run)
        return self.head(y), chunks


def nested_words(layout: Sequence[Any]) -> list[list[str]]:
    """Return the words of each stage, outer ones first, of a nested layout.

    Raises:
        ValueError: If it is not `[encoder, inner, decoder]` or `[main]`.
    """
    if isinstance(layout, str) or len(layout) not in (1, 3):
        raise ValueError(f"layout holds {layout!r}, expected [encoder, inner, decoder] or [main]")
    if len(layout) == 1:
        return [[layout[0]]]
    return [[layout[0], layout[2]], *nested_words(layout[1])]


def _read_targets(targets: Sequence[float] | None, count: int) -> list[float]:
    found = [6.0 if count == 1 else 3.0] * count if targets is None else [float(target) for target in targets]
    if len(found) != count or any(target <= 1 for target in found):
        raise ValueError(f"targets is {targets}, expected {count} numbers above 1, one per stage of chunks")
    return found


def _stage_sizes(
    count: int,
    dims: Sequence[int],
    num_heads: Sequence[int],
    rotary_dims: Sequence[int] | None,
    windows: Sequence[int | None] | None,
    ffn_dims: Sequence[int] | None,
    mamba: dict[str, int],
) -> list[StackSizes]:
    """Return the sizes of each stage.

    Raises:
        ValueError: If a list has another number of entries than there are stages, or sizes do not fit together.
    """
    given = {"dims": dims, "num_heads": num_heads, "rotary_dims": rotary_dims, "windows": windows, "ffn_dims": ffn_dims}
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise ValueError(f"{name} is {list(values)}, expected {count} entries, one per stage of the layout")
    halves = [2 * (dim // max(heads, 1) // 4) for dim, heads in zip(dims, num_heads, strict=True)]
    columns = zip(
        dims,
        num_heads,
        rotary_dims or halves,
        windows or [None] * count,
        ffn_dims or [swiglu_dim(dim, 128) for dim in dims],
        strict=True,
    )
    return [
        StackSizes(dim=dim, num_heads=heads, rotary_dim=rotary, window=window, ffn_dim=hidden, mamba=mamba)
        for dim, heads, rotary, window, hidden in columns
    ]
