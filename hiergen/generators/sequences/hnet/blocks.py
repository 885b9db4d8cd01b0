"""The layers of H-Net: Mamba-2 or windowed attention, each alone or with an MLP, in stacks that a short word lays out.

"T1m4" is one layer of attention with an MLP and four of Mamba-2 without one: m and t are Mamba-2 and attention, M and T the same with an MLP.

    x += mixer(RMSNorm(x));    M and T also x += MLP(RMSNorm(x));    behind the last layer RMSNorm

Letters: `b` batch, `n` tokens, `d` channels.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.layers import RMSNorm, SwiGLU
from hiergen.nn.blocks.placed import PlacedAttention, Sight, SlotCache
from hiergen.nn.mixers.state_space import Mamba2, MambaState
from hiergen.nn.running.precision import widen

#: Calls a function of tensors, perhaps with gradient checkpointing.
RunFn = Callable[..., Any]


def parse_layers(word: str) -> str:
    """Return one letter per layer of a layout: "Tmmmm" of "T1m4".

    Raises:
        ValueError: If the word is not made of letters m, t, M, T with counts.
    """
    if not isinstance(word, str) or not re.fullmatch(r"([mtMT][1-9]\d*)+", word):
        raise ValueError(
            f"layout holds {word!r}, expected letters of m, t, M and T with a count behind each, e.g. 'T1m4'"
        )
    return "".join(letter * int(count) for letter, count in re.findall(r"([mtMT])(\d+)", word))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackSizes:
    """Sizes of the layers of one stage.

    Attributes:
        dim: Channels of a token.
        num_heads: Attention heads.
        rotary_dim: Channels of a head that are turned by the position, from the first on.
        window: Number of earlier tokens that attention sees besides the token itself; None is all.
        ffn_dim: Hidden channels of the MLPs.
        mamba: Arguments of `Mamba2`.
    """

    dim: int
    num_heads: int
    rotary_dim: int
    window: int | None
    ffn_dim: int
    mamba: dict[str, int]

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}, expected a divisor of the stage's width, {self.dim}")
        head_dim = self.dim // self.num_heads
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= head_dim:
            raise ValueError(
                f"rotary_dims holds {self.rotary_dim}, expected an even number up to the channels of a head, {head_dim}"
            )
        if self.window is not None and self.window < 0:
            raise ValueError(f"windows holds {self.window}, expected None or a number of earlier tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What all layers of a stack share about the rows at hand.

    Attributes:
        lengths: Number of tokens of each row that are no padding; None is all.
        starts: Where packed sequences begin; None is one sequence per row.
        sight: Where the tokens stand and what attention sees; None where no layer is attention.
        rotary: Table of rotations; None where no layer is attention.
    """

    lengths: Int[Tensor, " b"] | None
    starts: Bool[Tensor, "b n"] | None
    sight: Sight | None = None
    rotary: Tensor | None = None


class StackState:
    """What a stack keeps of the tokens so far.

    Args:
        layers: A `MambaState` or a `SlotCache` per layer.
        lengths: Number of tokens of each row so far, `(b,)`.
        num_slots: Number of tokens of each row that the caches hold.
    """

    def __init__(self, layers: list[MambaState | SlotCache], lengths: Int[Tensor, " b"], num_slots: int) -> None:
        self.layers, self.lengths, self.num_slots = layers, lengths, num_slots


class HNetBlock(nn.Module):
    """x += mixer(RMSNorm(x)), and for the letters M and T then x += MLP(RMSNorm(x)). The stream x is at least float32.

    Args:
        letter: m, t, M or T.
        sizes: Sizes of the stage.
    """

    def __init__(self, letter: str, sizes: StackSizes) -> None:
        super().__init__()
        self.norm1 = RMSNorm(sizes.dim)
        self.mixer: nn.Module
        if letter in "mM":
            self.mixer = Mamba2(sizes.dim, **sizes.mamba)
        else:
            self.mixer = PlacedAttention(sizes.dim, sizes.num_heads, rotary_dim=sizes.rotary_dim)
        self.norm2 = RMSNorm(sizes.dim) if letter in "MT" else None
        self.mlp = SwiGLU(sizes.dim, sizes.ffn_dim) if letter in "MT" else None

    def forward(
        self, x: Float[Tensor, "b n d"], rows: Rows, state: MambaState | SlotCache | None = None
    ) -> Float[Tensor, "b n d"]:
        dtype = self.norm1.weight.dtype
        normal = self.norm1(x).to(dtype)
        if isinstance(self.mixer, Mamba2):
            mixed = self.mixer(normal, state=state, lengths=rows.lengths, starts=rows.starts)
        else:
            mixed = self.mixer(normal, rows.sight, rows.rotary, state)
        x = x + mixed
        return x if self.mlp is None or self.norm2 is None else x + self.mlp(self.norm2(x).to(dtype))


class Stack(nn.Module):
    """Layers of one stage, and a norm behind them.

    Args:
        word: Layout of the layers (`parse_layers`).
        sizes: Sizes of the stage.
    """

    def __init__(self, word: str, sizes: StackSizes) -> None:
        super().__init__()
        self.letters, self.sizes = parse_layers(word), sizes
        self.layers = nn.ModuleList(HNetBlock(letter, sizes) for letter in self.letters)
        self.norm = RMSNorm(sizes.dim)

    @property
    def num_additions(self) -> int:
        """How often something is added to the stream."""
        return sum(2 if letter in "MT" else 1 for letter in self.letters)

    def new_state(self, batch: int, num_slots: int, device: torch.device) -> StackState:
        """Return the state before the first tokens, for up to `num_slots` of each row."""
        layers = [MambaState() if letter in "mM" else SlotCache(batch, num_slots) for letter in self.letters]
        return StackState(layers, torch.zeros(batch, dtype=torch.int64, device=device), num_slots)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        starts: Bool[Tensor, "b n"] | None = None,
        state: StackState | None = None,
        run: RunFn | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after all layers and the norm.

        Args:
            x: Tokens; with a state, the next of each row.
            lengths: Number of tokens of each row that are no padding, 0 to n; None is all.
            starts: Where packed sequences begin; not together with a state.
            state: State of the earlier tokens, advanced in place.
            run: Calls the layers; None calls them directly.
        """
        rows = self._rows(x, lengths, starts, state)
        dtype, x = x.dtype, widen(x)
        for index, layer in enumerate(self.layers):
            if state is None:
                part = functools.partial(layer, rows=rows)
                x = part(x) if run is None else run(part, x)
            else:
                x = layer(x, rows, state.layers[index])
        if state is not None:
            state.lengths = state.lengths + (x.shape[1] if lengths is None else lengths)
        return self.norm(x).to(dtype)

    def _rows(self, x: Tensor, lengths: Tensor | None, starts: Tensor | None, state: StackState | None) -> Rows:
        if not set(self.letters) & set("tT"):
            return Rows(lengths=lengths, starts=starts)
        count, window = x.shape[1], None if self.sizes.window is None else self.sizes.window + 1
        if state is None:
            sight = Sight.of_rows(count, device=x.device, window=window)
        else:
            # Rows of a batch go on at different places; what padding leaves in a slot is overwritten by the token that comes there.
            slots = state.lengths[:, None] + torch.arange(count, device=x.device)
            batch = torch.arange(len(x), device=x.device)
            sight = Sight.of_slots(slots, state.num_slots, batch, window=window)
        if starts is not None:
            segment, places = starts.cumsum(dim=1), torch.arange(count, device=x.device)
            mask = sight.mask & (segment[:, :, None] == segment[:, None, :])
            # Counted from 0 in every sequence.
            positions = places - (places * starts).cummax(dim=1).values
            sight = dataclasses.replace(sight, mask=mask, positions=positions)
        return Rows(lengths=lengths, starts=starts, sight=sight, rotary=sight.rotary(self.sizes.rotary_dim, 10000.0))
