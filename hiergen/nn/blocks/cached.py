"""The transformer block of autoregression, which can continue from a cache of keys and values. It has no biases.

Letters: `b` batch, `n` tokens, `t` tokens with those of a cache, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import Branch, Linear, RMSNorm, SwiGLU, add_branches
from hiergen.nn.cache import LayerCache
from hiergen.nn.positions import apply_rotary


class CachedAttention(nn.Module):
    """Self-attention with rotary positions; with a cache, attention to all tokens stored so far."""

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(f"dim is {dim}, expected a multiple of 2 * num_heads = {2 * num_heads}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "*rows n t"] | None = None,
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


class CachedBlock(nn.Module):
    """x += Attn(RMS(x)); x += SwiGLU(RMS(x)), with rotary positions.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads; `dim / num_heads` must be even.
        ffn_dim: Hidden size of the feed-forward layer.
        attention_dropout: Probability of dropping a channel after the output projection of attention. Attention weights are never dropped.
        ffn_dropout: Probability of dropping a channel after the feed-forward layer.

    Source:
        LLaMA, arXiv:2302.13971; for images LlamaGen, arXiv:2406.06525.
    """

    def __init__(
        self, dim: int, num_heads: int, ffn_dim: int, *, attention_dropout: float = 0.0, ffn_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(dim)
        self.attention = CachedAttention(dim, num_heads, dropout=attention_dropout)
        self.ffn_norm = RMSNorm(dim)
        self.ffn = SwiGLU(dim, ffn_dim, dropout=ffn_dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "*rows n t"] | None = None,
        cache: LayerCache | None = None,
        only: Branch | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the block's output.

        Args:
            x: Tokens; with a cache, the tokens of the current group only.
            rotary: `rotary_table` at the positions of these tokens.
            mask: Which tokens of `x` see which of the `t` tokens so far, for all samples or with shape `(b, 1, n, t)`; None for all.
            cache: Keys and values of the earlier tokens, to which those of `x` are appended.
            only: The branch to return alone, without what it is added to.
        """
        return add_branches(
            x,
            lambda x: self.attention(self.attention_norm(x), rotary, mask=mask, cache=cache),
            lambda x: self.ffn(self.ffn_norm(x)),
            only,
        )
