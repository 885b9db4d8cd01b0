"""FlexTok's transformer blocks: norms without parameters, layers without biases; and one that a time modulates, in two streams.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import Branch, Linear, SwiGLU, add_branches


class NormalizedAttention(nn.Module):
    """Self-attention whose queries and keys are normalized without parameters; the scale of the scores is 8 / k.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads; must divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj = Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "n n"] | None = None) -> Float[Tensor, "b n d"]:
        """Return the attended tokens; `mask` is True where row may see column."""
        query, key, value = rearrange(self.qkv(x), "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
        size = query.shape[-1]
        # Autocast normalizes in float32; the three must be of one dtype.
        query, key = (F.layer_norm(heads, (size,)).to(value.dtype) for heads in (query, key))
        attended = attention(query, key, value, mask=mask, scale=8 / size)
        return self.proj(rearrange(attended, "b h n k -> b n (h k)"))


class RegisterBlock(nn.Module):
    """x += Attn(LN(x)); x += SwiGLU(LN(x)).

    Args:
        dim: Channels of a token.
        num_heads: Attention heads; must divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = NormalizedAttention(dim, num_heads)
        self.mlp = SwiGLU(dim, int(8 * dim / 3))

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "n n"], *, only: Branch | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after the block; `mask` is True where row may see column, `only` is that of `add_branches`."""
        return add_branches(x, lambda x: self.attention(self.norm(x), mask), lambda x: self.mlp(self.norm(x)), only)


class TwoStreamBlock(nn.Module):
    """x += gate1 Attn(LN(x)(1 + scale1) + shift1); x += gate2 SwiGLU(LN(x)(1 + scale2) + shift2), modulated apart in two streams.

    (gate1, gate2, shift1, scale1, shift2, scale2) of the first tokens, then of the rest, are Linear(SiLU(c)) of the condition c.

    Args:
        dim: Channels of a token and of the condition.
        num_heads: Attention heads; must divide `dim`.
        sizes: Tokens of each stream, in sequence order.
    """

    def __init__(self, dim: int, num_heads: int, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = NormalizedAttention(dim, num_heads)
        self.mlp = SwiGLU(dim, int(8 * dim / 3))
        self.modulation = Linear(dim, 12 * dim)

    def forward(
        self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"], *, only: Branch | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after modulated attention and feed-forward; `only` as in `add_branches`."""
        parts = self.modulation(F.silu(condition)).unflatten(-1, (2, 6, -1)).unbind(2)
        gate1, gate2, shift1, scale1, shift2, scale2 = (self._spread(part) for part in parts)
        return add_branches(
            x,
            lambda x: gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1),
            lambda x: gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2),
            only,
        )

    def _spread(self, rows: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b n d"]:
        """Return the row of its stream for every token."""
        first, second = self.sizes
        return torch.cat((rows[:, :1].expand(-1, first, -1), rows[:, 1:].expand(-1, second, -1)), dim=1)
