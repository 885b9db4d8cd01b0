"""The pre-norm vision-transformer block of masked autoregressive generation: full attention, fused [q | k | v], biases everywhere.

Letters: `b` batch, `n` tokens, `d` width.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class FusedAttention(nn.Module):
    """Bidirectional self-attention whose one input projection holds all queries, then all keys, then all values.

    Args:
        dim: Width, a multiple of `num_heads`.
        attention_dropout: Probability of dropping an attention weight, in train mode.
        dropout: Probability of dropping an output channel, in train mode.

    Raises:
        ValueError: If `dim` does not divide by `num_heads`.
    """

    def __init__(self, dim: int, num_heads: int, *, attention_dropout: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"width {dim} does not divide by num_heads {num_heads}")
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key, value = rearrange(self.qkv(x), "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
        # Called directly, not through kernels.attention: dropping attention weights is the one thing that call has no word for.
        rate = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
        return self.dropout(self.proj(rearrange(mixed, "b h n k -> b n (h k)")))


class FeedForward(nn.Module):
    """Linear, exact GELU, linear, with dropout after both linears."""

    def __init__(self, dim: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class MARBlock(nn.Module):
    """x + Attention(LN x), then x + MLP(LN x).

    Args:
        norm_eps: Epsilon of both layer norms. MAR's image models use 1e-6, MAR-3D 1e-5; the difference is visible.

    Source:
        Autoregressive Image Generation without Vector Quantization, arXiv:2406.11838 (the block is timm's ViT block).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = FusedAttention(dim, num_heads, attention_dropout=attention_dropout, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout=dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def xavier_linears(*modules: nn.Module) -> None:
    """Initialize every linear layer of some modules: Xavier uniform (a fused projection as one matrix), zero biases."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
