"""Transformer blocks: plain ones, with norms before or after, and one that a condition modulates (AdaLN-zero).

Letters: `b` batch, `n` tokens, `d` channels.
"""

from __future__ import annotations

import functools

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.cross import RowReader, read_rows
from hiergen.nn.blocks.layers import (
    AttendFn,
    Branch,
    FeedForwardKind,
    GeluMLP,
    Linear,
    NormKind,
    SelfAttention,
    add_branches,
    make_feed_forward,
    make_norm,
)


class EncoderBlock(nn.Module):
    """x += Attn(LN(x)); x += MLP(LN(x)), with biases everywhere and exact GELU: the block of vision transformers.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        norm_eps: Epsilon of both layer norms.
        attention_dropout: Probability of dropping an attention weight, in train mode.
        dropout: Probability of dropping a channel after a linear layer, in train mode.
        qkv_bias: Whether the fused input projection of attention has a bias.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
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
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.attention_dropout = attention_dropout
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = GeluMLP(dim, int(dim * mlp_ratio), dropout=dropout)

    def forward(self, x: Float[Tensor, "b n d"], *, only: Branch | None = None) -> Float[Tensor, "b n d"]:
        """Return the tokens after the block; `only` as in `add_branches`."""
        # Not kernels.attention, which has no word for dropping attention weights.
        rate = self.attention_dropout if self.training else 0.0
        attend = functools.partial(F.scaled_dot_product_attention, dropout_p=rate)
        return add_branches(
            x,
            lambda x: self.dropout(self.attn(self.norm1(x), attend=attend)),
            lambda x: self.mlp(self.norm2(x)),
            only,
        )


class PostNormBlock(nn.Module):
    """x = LN(x + Attn(x)); x = LN(x + MLP(x)), with biases everywhere and exact GELU: BERT's block.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        hidden_dim: Channels between the two linear layers of the MLP.
        norm_eps: Epsilon of both layer norms.
        dropout: Probability of dropping an attention weight, and a channel of what attention and MLP add, in train mode.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.

    Source:
        BERT, arXiv:1810.04805.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, *, norm_eps: float = 1e-12, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attn = SelfAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = GeluMLP(dim, hidden_dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        rate = self.dropout.p if self.training else 0.0
        attend = functools.partial(F.scaled_dot_product_attention, dropout_p=rate)
        x = self.norm1(x + self.dropout(self.attn(x, attend=attend)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class TransformerBlock(nn.Module):
    """x += Attn(RMS(x)); x += SwiGLU(RMS(x)).

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward part over `dim` (`make_feed_forward`).
        mixer: What takes the place of self-attention and is called as that is; None is `SelfAttention`.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, mixer: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1 = make_norm("rms", dim)
        self.attention = mixer or SelfAttention(dim, num_heads)
        self.norm2 = make_norm("rms", dim)
        self.ffn = make_feed_forward("swiglu", dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"] | None = None,
        attend: AttendFn = attention,
        *,
        only: Branch | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after attention and feed-forward; `only` as in `add_branches`."""
        return add_branches(
            x,
            lambda x: self.attention(self.norm1(x), rotary=rotary, attend=attend),
            lambda x: self.ffn(self.norm2(x)),
            only,
        )


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift. The modulation is one row per sample, `(b, d)`; None shifts nothing."""
    scaled = x * (1 + scale.unsqueeze(1))
    return scaled if shift is None else scaled + shift.unsqueeze(1)


class ModulatedBlock(nn.Module):
    """x += gate1 Attn(N(x)(1 + scale1) + shift1); x += gate2 FFN(N(x)(1 + scale2) + shift2): AdaLN-zero.

    (shift1, scale1, gate1, shift2, scale2, gate2) = Linear(SiLU(c)) of the condition c, by a linear layer of each block. Without
    shifts it gives (scale1, gate1, scale2, gate2).

    Args:
        dim: Channels of a token and of the condition.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward part over `dim` (`make_feed_forward`).
        norm: Kind of both norms (`make_norm`).
        ffn: Kind of the feed-forward part (`make_feed_forward`).
        use_shift: Whether the modulation shifts.
        use_qk_norm: Normalize the queries and keys of each head (`SelfAttention`).
        mixer: What takes the place of self-attention and is called as that is; None is `SelfAttention`.
        reads_rows: Whether tokens also look at rows, of a text, behind self-attention: x += Cross(x, rows), which is 0 at first.

    Source:
        DiT, arXiv:2212.09748; LightningDiT, arXiv:2501.01423.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm: NormKind = "rms",
        ffn: FeedForwardKind = "swiglu",
        use_shift: bool = True,
        use_qk_norm: bool = False,
        mixer: nn.Module | None = None,
        reads_rows: bool = False,
    ) -> None:
        super().__init__()
        self.use_shift = use_shift
        self.norm1 = make_norm(norm, dim)
        self.attention = mixer or SelfAttention(dim, num_heads, use_qk_norm=use_qk_norm)
        self.norm2 = make_norm(norm, dim)
        self.ffn = make_feed_forward(ffn, dim, mlp_ratio)
        self.modulation = Linear(dim, (6 if use_shift else 4) * dim)
        self.cross = RowReader(dim, num_heads) if reads_rows else None

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        rotary: Float[Tensor, "2 n half"] | None,
        attend: AttendFn = attention,
        *,
        rows: Float[Tensor, "b r d"] | None = None,
        only: Branch | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after modulated attention and feed-forward; `attend` as in `SelfAttention`, `only` as in `add_branches`.

        `rows` are what `reads_rows` reads.
        """
        parts = self.modulation(F.silu(condition)).chunk(6 if self.use_shift else 4, dim=-1)
        shift1, scale1, gate1 = parts[:3] if self.use_shift else (None, *parts[:2])
        shift2, scale2, gate2 = parts[3:] if self.use_shift else (None, *parts[2:])
        return add_branches(
            x,
            lambda x: read_rows(
                self.cross,
                x,
                gate1.unsqueeze(1)
                * self.attention(modulate(self.norm1(x), shift1, scale1), rotary=rotary, attend=attend),
                rows,
            ),
            lambda x: gate2.unsqueeze(1) * self.ffn(modulate(self.norm2(x), shift2, scale2)),
            only,
        )
