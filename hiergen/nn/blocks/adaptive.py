"""Pre-norm transformer blocks of the flow transformer and of HieraTok: plain, and modulated by a condition (AdaLN-zero).

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.llama import RMSNorm

#: Attention of projected heads: (query, key, value), each `(b, h, n, k)`, to `(b, h, n, k)`.
AttendFn = Callable[[Tensor, Tensor, Tensor], Tensor]
NormKind = Literal["rms", "layer"]
FeedForwardKind = Literal["swiglu", "gelu"]


def rotate_channels(x: Float[Tensor, "b h n k"], table: Float[Tensor, "2 n k"]) -> Float[Tensor, "b h n k"]:
    """Return x cos + J x sin, where J takes the adjacent pair (u, v) to (-v, u), computed in at least float32.

    `table` holds the cosines and the sines of every channel, which is how LightningDiT stores them; in a proper rotation both
    channels of a pair have the same angle (`pairwise_table`).
    """
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = table.to(wide.dtype)
    u, v = wide.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-v, u), dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


def pairwise_table(half_table: Float[Tensor, "2 n half"]) -> Float[Tensor, "2 n k"]:
    """Return the table of `hiergen.nn.positions.rotary_table` with each entry repeated for both channels of its pair."""
    # Not repeat_interleave, which makes its counts on the default device and fails where that is the meta device.
    return half_table.unsqueeze(-1).expand(*half_table.shape, 2).flatten(-2)


def make_norm(kind: NormKind, dim: int) -> nn.Module:
    """Return RMSNorm with a weight, or LayerNorm without parameters; epsilon 1e-6 in both.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in get_args(NormKind):
        raise ValueError(f"norm is {kind!r}, expected one of {get_args(NormKind)}")
    if kind == "rms":
        return RMSNorm(dim, eps=1e-6)
    return nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


class SelfAttention(nn.Module):
    """Multi-head self-attention; the fused projection is laid out [q | k | v], then heads.

    Args:
        dim: Channels of a token.
        num_heads: Heads; must divide `dim`.
        use_qk_norm: Normalize queries and keys per head (RMSNorm with a weight) before they are rotated.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, *, use_qk_norm: bool = False) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm: nn.Module = RMSNorm(dim // num_heads, eps=1e-6) if use_qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(dim // num_heads, eps=1e-6) if use_qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b n d"], *, rotary: Float[Tensor, "2 n k"] | None = None, attend: AttendFn = attention
    ) -> Float[Tensor, "b n d"]:
        """Return the attended tokens. `attend` decides who sees whom; by default everybody sees everybody."""
        query, key, value = rearrange(self.qkv(x), "b n (three h k) -> three b h n k", three=3, h=self.num_heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate_channels(query, rotary), rotate_channels(key, rotary)
        return self.proj(rearrange(attend(query, key, value), "b h n k -> b n (h k)"))


class SwiGLU(nn.Module):
    """w3(SiLU(a) b), where (a, b) are the halves of w12(x)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return the transformed tokens."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class GeluMLP(nn.Module):
    """fc2(GELU(fc1(x))), GELU by its tanh approximation."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return the transformed tokens."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def make_feed_forward(kind: FeedForwardKind, dim: int, ratio: float) -> nn.Module:
    """Return the feed-forward part: "gelu" with `ratio * dim` hidden channels, "swiglu" with two thirds of that, rounded down.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in get_args(FeedForwardKind):
        raise ValueError(f"ffn is {kind!r}, expected one of {get_args(FeedForwardKind)}")
    hidden = int(dim * ratio)
    return SwiGLU(dim, 2 * hidden // 3) if kind == "swiglu" else GeluMLP(dim, hidden)


class TransformerBlock(nn.Module):
    """Pre-norm block: x += Attn(RMS(x)); x += SwiGLU(RMS(x)).

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        mlp_ratio: See `make_feed_forward`.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = make_norm("rms", dim)
        self.attention = SelfAttention(dim, num_heads)
        self.norm2 = make_norm("rms", dim)
        self.ffn = make_feed_forward("swiglu", dim, mlp_ratio)

    def forward(
        self, x: Float[Tensor, "b n d"], rotary: Float[Tensor, "2 n k"] | None = None, attend: AttendFn = attention
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after attention and feed-forward."""
        x = x + self.attention(self.norm1(x), rotary=rotary, attend=attend)
        return x + self.ffn(self.norm2(x))


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """Return x (1 + scale) + shift, the modulation being one row `(b, d)` a sample; None shifts nothing."""
    scaled = x * (1 + scale.unsqueeze(1))
    return scaled if shift is None else scaled + shift.unsqueeze(1)


class ModulatedBlock(nn.Module):
    """Transformer block whose norms and branches are modulated by a condition (AdaLN-zero), every block by its own linear.

    (shift1, scale1, gate1, shift2, scale2, gate2) = Linear(SiLU(c)); x += gate1 Attn(N(x)(1 + scale1) + shift1);
    x += gate2 FFN(N(x)(1 + scale2) + shift2). Without shifts the linear gives (scale1, gate1, scale2, gate2).

    Args:
        dim: Channels of a token and of the condition.
        num_heads: Attention heads.
        mlp_ratio: See `make_feed_forward`.
        norm: See `make_norm`.
        ffn: See `make_feed_forward`.
        use_shift: Whether the modulation shifts.
        use_qk_norm: See `SelfAttention`.

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
    ) -> None:
        super().__init__()
        self.use_shift = use_shift
        self.norm1 = make_norm(norm, dim)
        self.attention = SelfAttention(dim, num_heads, use_qk_norm=use_qk_norm)
        self.norm2 = make_norm(norm, dim)
        self.ffn = make_feed_forward(ffn, dim, mlp_ratio)
        self.modulation = nn.Linear(dim, (6 if use_shift else 4) * dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "b d"],
        rotary: Float[Tensor, "2 n k"] | None,
        attend: AttendFn = attention,
    ) -> Float[Tensor, "b n d"]:
        """Return the tokens after modulated attention and feed-forward; `attend` as in `SelfAttention`."""
        parts = self.modulation(F.silu(condition)).chunk(6 if self.use_shift else 4, dim=-1)
        shift1, scale1, gate1 = parts[:3] if self.use_shift else (None, *parts[:2])
        shift2, scale2, gate2 = parts[3:] if self.use_shift else (None, *parts[2:])
        attended = self.attention(modulate(self.norm1(x), shift1, scale1), rotary=rotary, attend=attend)
        x = x + gate1.unsqueeze(1) * attended
        return x + gate2.unsqueeze(1) * self.ffn(modulate(self.norm2(x), shift2, scale2))
