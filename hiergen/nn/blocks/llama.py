"""The decoder block of Llama: RMSNorm, rotary attention with fused projections, SwiGLU. No biases anywhere.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.cache import LayerCache
from hiergen.nn.positions import apply_rotary


def swiglu_dim(dim: int, multiple: int = 256) -> int:
    """Return the hidden size of Llama's feed-forward layer: 8/3 of `dim`, rounded up to a multiple."""
    return -(-int(8 * dim / 3) // multiple) * multiple


class RMSNorm(nn.Module):
    """Divide by the root mean square of the channels, in float32, then scale each channel.

    Args:
        dim: Channels.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class LlamaAttention(nn.Module):
    """Self-attention with rotary positions; with a cache, attention to all tokens stored so far."""

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(f"dim is {dim}, expected a multiple of 2 * num_heads = {2 * num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        # Plain reshapes: einops costs a tenth of a small step's time.
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, k)
        query, key = apply_rotary(qkv[:2], rotary).unbind()
        value = qkv[2]
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attention(query, key, value, mask=mask)
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """Feed-forward layer `down(silu(gate(x)) * up(x))`."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class LlamaBlock(nn.Module):
    """Pre-norm residual block of attention and SwiGLU.

    Args:
        dim: Channels.
        num_heads: Attention heads; `dim / num_heads` must be even.
        ffn_dim: Hidden size of the feed-forward layer.
        attention_dropout: After the output projection of attention (the attention weights themselves are never dropped).
        ffn_dropout: After the feed-forward layer.

    Source:
        LLaMA, arXiv:2302.13971; for images LlamaGen, arXiv:2406.06525.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, *, attention_dropout: float = 0.0, ffn_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = LlamaAttention(dim, num_heads, dropout=attention_dropout)
        self.ffn_norm = RMSNorm(dim)
        self.ffn = SwiGLU(dim, ffn_dim, dropout=ffn_dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the block's output.

        Args:
            x: Tokens; with a cache, those of the current group only.
            rotary: `rotary_table` at the positions of these tokens.
            mask: Which tokens of `x` see which; None for all.
            cache: Keys and values of the earlier tokens; extended by those of `x`, all of which `x` then sees.
        """
        x = x + self.attention(self.attention_norm(x), rotary, mask=mask, cache=cache)
        return x + self.ffn(self.ffn_norm(x))
