"""The vision-transformer block with layer scale, rotary positions and normalized queries and keys.

Letters: `b` batch, `n` tokens, `d` channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.kernels.products import linear
from hiergen.nn.blocks.layers import Branch, GeluMLP, Linear, add_branches
from hiergen.nn.positions import apply_rotary


class ViTAttention(nn.Module):
    """Self-attention with a bias on queries and values only, LayerNorm on each head's queries and keys, and rotary positions.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads; a head has `dim / num_heads` channels, a multiple of 4 with positions on two axes.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim is {dim}, expected a multiple of num_heads, {num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.query_norm = nn.LayerNorm(dim // num_heads)
        self.key_norm = nn.LayerNorm(dim // num_heads)
        self.out = Linear(dim, dim)

    def forward(
        self, tokens: Float[Tensor, "b n d"], rotary: Float[Tensor, "2 n half"], mask: Bool[Tensor, "n n"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Return what the tokens read of each other; `mask` is True where row may see column."""
        bias = torch.cat((self.query_bias, torch.zeros_like(self.query_bias), self.value_bias))
        qkv = linear(tokens, self.qkv.weight, bias)
        query, key, value = rearrange(qkv, "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
        query = apply_rotary(self.query_norm(query), rotary).to(value.dtype)
        key = apply_rotary(self.key_norm(key), rotary).to(value.dtype)
        return self.out(rearrange(attention(query, key, value, mask=mask), "b h n k -> b n (h k)"))


class ViTBlock(nn.Module):
    """x += scale1 * Attn(LN(x)); x += scale2 * MLP(LN(x)), with scales that start at 1.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        hidden_dim: Channels between the two linear layers of the MLP.

    Source:
        ResTok, arXiv:2601.03955, and its code.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = ViTAttention(dim, num_heads)
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GeluMLP(dim, hidden_dim)
        self.scale2 = nn.Parameter(torch.ones(dim))

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        mask: Bool[Tensor, "n n"] | None = None,
        between: Callable[[Tensor], Tensor] | None = None,
        *,
        only: Branch | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Return the tokens after the block.

        Args:
            tokens: Tokens of the sequence.
            rotary: `hiergen.nn.positions.rotary_table` of the sequence's positions.
            mask: True where row may see column; None for full attention.
            between: Applied between attention and MLP; may change the number of tokens (`m` is then not `n`).
            only: The branch to return alone, without what it is added to and without `between`.
        """
        if between is None or only is not None:
            return add_branches(tokens, lambda x: self._attend(x, rotary, mask), self._feed, only)
        tokens = between(tokens + self._attend(tokens, rotary, mask))
        return tokens + self._feed(tokens)

    def _attend(self, tokens: Tensor, rotary: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.scale1 * self.attention(self.norm1(tokens), rotary, mask)

    def _feed(self, tokens: Tensor) -> Tensor:
        return self.scale2 * self.mlp(self.norm2(tokens))
