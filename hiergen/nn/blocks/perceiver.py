"""Blocks in which a set of queries reads a set of points and then itself, and the Fourier embedding of points.

Their projections are fused with *interleaved* heads: the output channels are `(heads, 3, k)` (query, key, value inside each
head), not `(3, heads, k)`. Published weights depend on it.

Letters: `b` batch, `q` queries, `n` tokens, `d` channels of a token, `p` points, `k` channels of a head.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.anchors import PLACE_DIM
from hiergen.nn.blocks.layers import Branch, Linear, add_branches
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.running.checkpointing import CheckpointedModule

#: Key and value of every head, each `(b, heads, n, k)`.
KeyValue = tuple[Tensor, Tensor]


def fourier_dim(num_frequencies: int) -> int:
    """Return the channels of `fourier_embedding` for points of three coordinates."""
    return 3 * (2 * num_frequencies + 1)


def fourier_embedding(
    points: Float[Tensor, "*b p 3"], num_frequencies: int, *, include_pi: bool = False
) -> Float[Tensor, "*b p e"]:
    """Return coordinates, sines and cosines of them at frequencies 1, 2, 4, ..., `e = 3 (2 F + 1)` channels.

    Sines (and cosines) are ordered by coordinate, then by frequency. Computed in float32, or float64 for such points, because
    a frequency of 2^7 leaves no digits of a half-precision coordinate.

    Args:
        points: Coordinates, in [-1, 1] where the model was trained.
        num_frequencies: Number F of frequencies.
        include_pi: Multiply the frequencies by pi.

    Source:
        NeRF, arXiv:2003.08934, eq. 4; in this order by Michelangelo, arXiv:2306.17115.
    """
    wide = points if points.dtype == torch.float64 else points.float()
    frequencies = 2.0 ** torch.arange(num_frequencies, dtype=wide.dtype, device=wide.device)
    if include_pi:
        frequencies = frequencies * math.pi
    angles = (wide[..., None] * frequencies).flatten(-2)
    return torch.cat((wide, angles.sin(), angles.cos()), dim=-1)


class FeedForward(nn.Module):
    """The MLP of a block: width to four times the width, exact GELU, and back."""

    def __init__(self, width: int, *, ratio: int = 4) -> None:
        super().__init__()
        self.up = Linear(width, ratio * width)
        self.down = Linear(ratio * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.down(nn.functional.gelu(self.up(x)))


class InterleavedAttention(nn.Module):
    """Full self-attention with one fused, head-interleaved projection."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key_value = Linear(width, 3 * width, bias=qkv_bias)
        self.output = Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        heads = rearrange(self.query_key_value(x), "b n (h c k) -> c b h n k", h=self.num_heads, c=3)
        return self.output(rearrange(attention(heads[0], heads[1], heads[2]), "b h n k -> b n (h k)"))


class CrossAttention(nn.Module):
    """Attention from queries to data, whose keys and values can be computed once and used again."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width, bias=qkv_bias)
        self.key_value = Linear(width, 2 * width, bias=qkv_bias)
        self.output = Linear(width, width)

    def project_data(self, data: Float[Tensor, "b n d"], places: Tensor | None = None) -> KeyValue:
        """Return keys and values of the data, `(b, heads, n, k)` each; with places (`hiergen.nn.blocks.anchors`) these are in the keys."""
        heads = rearrange(self.key_value(data), "b n (h c k) -> c b h n k", h=self.num_heads, c=2)
        if places is None:
            return heads[0], heads[1]
        # Attention wants values as wide as keys.
        return _at(heads[0], places), nn.functional.pad(heads[1], (0, PLACE_DIM))

    def forward(
        self, x: Float[Tensor, "b q d"], key_value: KeyValue, places: Tensor | None = None
    ) -> Float[Tensor, "b q d"]:
        query = rearrange(self.query(x), "b q (h k) -> b h q k", h=self.num_heads)
        width, scale = query.shape[-1], None
        if places is not None:
            scale = width**-0.5
            query = _at(query, places / scale)
        found = attention(query, *key_value, scale=scale)[..., :width]
        return self.output(rearrange(found, "b h q k -> b q (h k)"))


def _at(heads: Tensor, places: Tensor) -> Tensor:
    return torch.cat((heads, places.to(heads.dtype).expand(*heads.shape[:3], -1)), dim=-1)


class SelfBlock(nn.Module):
    """Pre-norm transformer block: self-attention, then the MLP."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = InterleavedAttention(width, num_heads, qkv_bias=qkv_bias)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, x: Float[Tensor, "b n d"], *, only: Branch | None = None) -> Float[Tensor, "b n d"]:
        """Return the tokens after the block; `only` as in `add_branches`."""
        return add_branches(
            x, lambda x: self.attention(self.norm_attention(x)), lambda x: self.mlp(self.norm_mlp(x)), only
        )


class CrossBlock(nn.Module):
    """Pre-norm block in which queries read data: cross-attention, then the MLP."""

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm_query = nn.LayerNorm(width)
        self.norm_data = nn.LayerNorm(width)
        self.attention = CrossAttention(width, num_heads, qkv_bias=qkv_bias)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def project_data(self, data: Float[Tensor, "b n d"], places: Tensor | None = None) -> KeyValue:
        """Return keys and values of the normalized data, for `forward` and `change`, which take places if this does."""
        return self.attention.project_data(self.norm_data(data), places)

    def forward(
        self, x: Float[Tensor, "b q d"], key_value: KeyValue, places: Tensor | None = None
    ) -> Float[Tensor, "b q d"]:
        x = x + self.attention(self.norm_query(x), key_value, places)
        return x + self.mlp(self.norm_mlp(x))

    def change(
        self, x: Float[Tensor, "b q d"], key_value: KeyValue, places: Tensor | None = None
    ) -> Float[Tensor, "b q d"]:
        """Return `forward(x, key_value, places) - x` without the rounding of that difference."""
        read = self.attention(self.norm_query(x), key_value, places)
        return read + self.mlp(self.norm_mlp(x + read))


class SelfStack(CheckpointedModule):
    """Self blocks one after another, or by a plan (`hiergen.nn.depth.plan`)."""

    def __init__(
        self, depth: int, width: int, num_heads: int, *, qkv_bias: bool = True, plan: PlanJson | None = None
    ) -> None:
        super().__init__()
        self.blocks = BlockStack(
            (SelfBlock(width, num_heads, qkv_bias=qkv_bias) for _ in range(depth)), plan, dim=width
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.blocks(x)


def init_perceiver(module: nn.Module, *, std: float) -> None:
    """Draw the weights of all blocks inside `module` from N(0, std²) and zero their biases.

    Linear layers outside the blocks keep PyTorch's default, as in the published models.
    """
    for block in module.modules():
        if isinstance(block, (SelfBlock, CrossBlock)):
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
