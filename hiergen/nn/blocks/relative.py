"""T5's transformer: distances are told by a learned bias of each head, nothing else has biases, attention has no scale.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head, `t` keys.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.layers import RMSNorm
from hiergen.nn.blocks.placed import Sight, SlotCache

#: Rows of the table of biases, and the distance from which on all share the last.
NUM_BUCKETS, MAX_DISTANCE = 32, 128


def distance_buckets(lag: Int[Tensor, ...], *, is_causal: bool) -> Int[Tensor, ...]:
    """Return the row of the table of biases for each query place less key place.

    Half of the rows are for single distances, the others grow with the logarithm. Without causality keys behind the query have rows of
    their own, and each side has half as many.
    """
    count = NUM_BUCKETS if is_causal else NUM_BUCKETS // 2
    offset = torch.zeros_like(lag) if is_causal else (lag < 0) * count
    distance = lag.clamp(min=0) if is_causal else lag.abs()
    exact = count // 2
    growth = (distance.clamp(min=1) / exact).log() / math.log(MAX_DISTANCE / exact) * (count - exact)
    return offset + torch.where(distance < exact, distance, (exact + growth.long()).clamp(max=count - 1))


class RelativeAttention(nn.Module):
    """out(softmax(query key^T + bias) value), without scale and biases of linear layers."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.head_dim = dim // num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        source: Float[Tensor, "b t d"],
        bias: Tensor | None,
        sight: Sight | None = None,
        cache: SlotCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return what the tokens of `x` read from those of `source`; with a cache also from what it holds."""
        query, key, value = (
            linear(part).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear, part in ((self.query, x), (self.key, source), (self.value, source))
        )
        if cache is not None and sight is not None:
            key, value = cache.append(key, value, sight)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return self.out(attended.transpose(1, 2).flatten(2))


class RelativeBlock(nn.Module):
    """x += Attn(RMS(x)); with a memory x += Cross(RMS(x), memory); x += W2 ReLU(W1 RMS(x)).

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLP.
        has_memory: Whether there is attention to a memory.

    Source:
        T5, arXiv:1910.10683.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, *, has_memory: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim, eps=1e-6)
        self.attention = RelativeAttention(dim, num_heads)
        self.memory_norm = RMSNorm(dim, eps=1e-6) if has_memory else None
        self.memory_attention = RelativeAttention(dim, num_heads) if has_memory else None
        self.norm2 = RMSNorm(dim, eps=1e-6)
        self.up = nn.Linear(dim, ffn_dim, bias=False)
        self.down = nn.Linear(ffn_dim, dim, bias=False)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        bias: Tensor,
        memory: Float[Tensor, "b t d"] | None = None,
        sight: Sight | None = None,
        cache: SlotCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        normal = self.norm1(x)
        x = x + self.attention(normal, normal, bias, sight, cache)
        if self.memory_attention is not None and self.memory_norm is not None:
            assert memory is not None
            x = x + self.memory_attention(self.memory_norm(x), memory, None)
        return x + self.down(F.relu(self.up(self.norm2(x))))


class RelativeStack(nn.Module):
    """Blocks that share one table of biases, and a norm behind them.

    Args:
        dim: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLPs.
        is_decoder: Causal and with a memory; else every token sees all, and there is no memory.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, ffn_dim: int, *, is_decoder: bool) -> None:
        super().__init__()
        self.is_decoder = is_decoder
        self.distance_bias = nn.Embedding(NUM_BUCKETS, num_heads)
        self.blocks = nn.ModuleList(RelativeBlock(dim, num_heads, ffn_dim, has_memory=is_decoder) for _ in range(depth))
        self.norm = RMSNorm(dim, eps=1e-6)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "*rows n t"],
        memory: Float[Tensor, "b m d"] | None = None,
        sight: Sight | None = None,
        caches: list[SlotCache] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after all blocks and the norm.

        Args:
            x: Tokens; with caches, the next of each row.
            mask: Which keys each token sees, for all rows or for each.
            memory: What a decoder reads besides.
            sight: Slots of the caches that the tokens go to.
            caches: Caches of the blocks.
        """
        places = torch.arange(x.shape[1], device=x.device)[None] if sight is None else sight.positions
        lag = places[:, :, None] - torch.arange(mask.shape[-1], device=x.device)
        bias = self.distance_bias(distance_buckets(lag, is_causal=self.is_decoder)).permute(0, 3, 1, 2)
        hidden = mask if mask.ndim == 2 else mask[:, None]
        bias = bias.masked_fill(~hidden, -math.inf).to(x.dtype)
        for index, block in enumerate(self.blocks):
            x = block(x, bias, memory, sight, None if caches is None else caches[index])
        return self.norm(x)
