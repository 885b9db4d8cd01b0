"""The transformer block of autoregression in any order: a condition of its own modulates every position (AdaLN-zero).

Letters: `b` batch, `n` positions, `d` channels, `h` heads, `k` channels of a head, `r` rows of a text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.cross import RowReader, read_rows
from hiergen.nn.blocks.layers import Branch, GeluMLP, Linear, add_branches
from hiergen.nn.cache import LayerCache

_EPS = 1e-6


class CausalAttention(nn.Module):
    """Self-attention to earlier positions, with biases, and an affine LayerNorm on each head's queries and keys.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        dropout: Probability of dropping an attention weight, and a channel of the output, in train mode.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.query_norm = nn.LayerNorm(dim // num_heads, eps=_EPS)
        self.key_norm = nn.LayerNorm(dim // num_heads, eps=_EPS)
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"], cache: LayerCache | None = None) -> Float[Tensor, "b n d"]:
        """Return what the positions read; a cache holds those before them, and takes their keys and values."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, k)
        query, key, value = self.query_norm(qkv[0]), self.key_norm(qkv[1]), qkv[2]
        if cache is not None:
            key, value = cache.append(key, value)
        length, total = query.shape[2], key.shape[2]
        mask = None
        if 1 < length < total:
            mask = torch.ones(length, total, dtype=torch.bool, device=x.device).tril(total - length)
        # Not kernels.attention, which has no word for dropping attention weights.
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=length == total and length > 1,
        )
        return self.dropout(self.proj(attended.transpose(1, 2).flatten(2)))


class PositionModulatedBlock(nn.Module):
    """x += gate1 Attn(LN(x)(1 + scale1) + shift1); x += gate2 MLP(LN(x)(1 + scale2) + shift2), norms affine, GELU exact.

    (shift1, scale1, gate1, shift2, scale2, gate2) = Linear(condition), at every position its own.

    Args:
        dim: Channels of a token and of the condition.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLP.
        dropout: Probability of dropping an attention weight, or a channel after a linear layer, in train mode.
        reads_rows: Whether tokens also look at rows, of a text, behind self-attention: x += Cross(x, rows), which is 0 at first.

    Source:
        RAR, arXiv:2411.00776.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, *, dropout: float = 0.0, reads_rows: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = CausalAttention(dim, num_heads, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = GeluMLP(dim, ffn_dim, dropout=dropout)
        self.modulation = Linear(dim, 6 * dim)
        self.cross = RowReader(dim, num_heads) if reads_rows else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b n d"],
        cache: LayerCache | None = None,
        *,
        rows: Float[Tensor, "b r d"] | None = None,
        only: Branch | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after the block; `cache` as in `CausalAttention`, `rows` for `reads_rows`, `only` as in `add_branches`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        return add_branches(
            x,
            lambda x: read_rows(self.cross, x, gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, cache), rows),
            lambda x: gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2),
            only,
        )


class ModulatedNorm(nn.Module):
    """LN(x)(1 + scale) + shift without parameters of its own, (scale, shift) = Linear(condition): scale first, unlike in the blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=_EPS, elementwise_affine=False)
        self.modulation = Linear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift
