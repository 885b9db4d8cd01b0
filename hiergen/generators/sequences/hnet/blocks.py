"""The layers of H-Net: Mamba-2 or windowed attention, each alone or with an MLP, in stacks that a short word lays out.

"T1m4" is one layer of attention with an MLP and four of Mamba-2 without one: m and t are Mamba-2 and attention, M and T the same with an MLP.

    x += mixer(RMSNorm(x));    M and T also x += MLP(RMSNorm(x));    behind the last layer RMSNorm

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import RMSNorm, SwiGLU
from hiergen.nn.cache import RaggedLayerCache
from hiergen.nn.mixers.state_space import Mamba2, MambaState
from hiergen.nn.positions import apply_rotary, rotary_table
from hiergen.nn.running.precision import widen

#: Calls a function of tensors, perhaps with gradient checkpointing.
RunFn = Callable[..., Any]


def parse_layers(word: str) -> str:
    """Return one letter per layer of a layout: "Tmmmm" of "T1m4".

    Raises:
        ValueError: If the word is not made of letters m, t, M, T with counts.
    """
    if not isinstance(word, str) or not re.fullmatch(r"([mtMT][1-9]\d*)+", word):
        raise ValueError(f"layout holds {word!r}, expected letters of m, t, M and T with a count behind each, e.g. 'T1m4'")
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
class Places:
    """Where the tokens of a group stand: what all layers of a stack share.

    Attributes:
        lengths: Number of tokens of each row that are no padding; None is all.
        starts: Where packed sequences begin; None is one sequence per row.
        index: Place of each token in its row, `(b, n)`.
        rotary: Table of rotations at these places; None where no layer is attention.
        mask: Which keys each token sees: `(n, n)`, or `(b, n, t)` where rows differ; None where no layer is attention.
    """

    lengths: Int[Tensor, " b"] | None
    starts: Bool[Tensor, "b n"] | None
    index: Int[Tensor, "b n"]
    rotary: Float[Tensor, "2 some 1 n half"] | None = None
    mask: Bool[Tensor, "*rows n t"] | None = None


class StackState:
    """What a stack keeps of the tokens so far.

    Attributes:
        layers: A `MambaState` or a `RaggedLayerCache` per layer.
        lengths: Number of tokens of each row so far, `(b,)`.
    """

    def __init__(self, layers: list[MambaState | RaggedLayerCache], lengths: Int[Tensor, " b"]) -> None:
        self.layers, self.lengths, self.most = layers, lengths, 0


class WindowedAttention(nn.Module):
    """Causal self-attention without biases whose rotations turn a part of each head.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        rotary_dim: Channels of a head that are turned.
    """

    def __init__(self, dim: int, num_heads: int, rotary_dim: int) -> None:
        super().__init__()
        self.num_heads, self.rotary_dim = num_heads, rotary_dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "b n d"], places: Places, state: RaggedLayerCache | None = None
    ) -> Float[Tensor, "b n d"]:
        assert places.rotary is not None
        assert places.mask is not None
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (self._turn(heads, places.rotary) for heads in (query, key))
        if state is not None:
            key, value = state.append(key, value, places.index)
        if places.mask.ndim == 2:
            attended = attention(query, key, value, mask=places.mask)
        else:
            # Not kernels.attention, which has one mask for all rows.
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=places.mask[:, None])
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def _turn(self, heads: Tensor, rotary: Tensor) -> Tensor:
        turned = apply_rotary(heads[..., : self.rotary_dim], rotary)
        return torch.cat((turned, heads[..., self.rotary_dim :]), dim=-1)


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
            self.mixer = WindowedAttention(sizes.dim, sizes.num_heads, sizes.rotary_dim)
        self.norm2 = RMSNorm(sizes.dim) if letter in "MT" else None
        self.mlp = SwiGLU(sizes.dim, sizes.ffn_dim) if letter in "MT" else None

    def forward(
        self, x: Float[Tensor, "b n d"], places: Places, state: MambaState | RaggedLayerCache | None = None
    ) -> Float[Tensor, "b n d"]:
        dtype = self.norm1.weight.dtype
        normal = self.norm1(x).to(dtype)
        if isinstance(self.mixer, Mamba2):
            mixed = self.mixer(normal, state=state, lengths=places.lengths, starts=places.starts)
        else:
            mixed = self.mixer(normal, places, state)
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

    def new_state(self, batch: int, device: torch.device) -> StackState:
        """Return the state before the first tokens."""
        layers = [MambaState() if letter in "mM" else RaggedLayerCache() for letter in self.letters]
        return StackState(layers, torch.zeros(batch, dtype=torch.int64, device=device))

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
        places = self._places(x, lengths, starts, state)
        dtype, x = x.dtype, widen(x)
        for index, layer in enumerate(self.layers):
            if state is None:
                part = functools.partial(layer, places=places)
                x = part(x) if run is None else run(part, x)
            else:
                x = layer(x, places, state.layers[index])
        if state is not None:
            state.lengths = state.lengths + (x.shape[1] if lengths is None else lengths)
            state.most += x.shape[1]
        return self.norm(x).to(dtype)

    def _places(
        self, x: Tensor, lengths: Tensor | None, starts: Tensor | None, state: StackState | None
    ) -> Places:
        count = x.shape[1]
        query = torch.arange(count, device=x.device)[None]
        key = query
        if state is not None:
            # Rows of a batch go on at different places.
            query = query + state.lengths[:, None]
            key = torch.arange(state.most + count, device=x.device)[None]
        places = Places(lengths=lengths, starts=starts, index=query.expand(len(x), -1))
        if not set(self.letters) & set("tT"):
            return places
        lag = query[:, :, None] - key[:, None, :]
        mask = lag >= 0 if self.sizes.window is None else (lag >= 0) & (lag <= self.sizes.window)
        if starts is not None:
            segment = starts.cumsum(dim=1)
            mask = mask & (segment[:, :, None] == segment[:, None, :])
        # Packed sequences are not counted from 0 again: attention inside one sees differences of places alone.
        rotary = rotary_table(query.reshape(-1, 1).double(), self.sizes.rotary_dim).unflatten(1, query.shape)
        is_shared = state is None and starts is None
        return dataclasses.replace(places, rotary=rotary[:, :, None], mask=mask[0] if is_shared else mask)
