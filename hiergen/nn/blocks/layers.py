"""The layers that transformer blocks are made of: norms, feed-forward networks, and self-attention with a fused projection.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.kernels.products import PackedWeight, linear
from hiergen.nn.positions import apply_rotary

#: Attention of projected heads: (query, key, value), each `(b, h, n, k)`, to `(b, h, n, k)`.
AttendFn = Callable[[Tensor, Tensor, Tensor], Tensor]
#: A branch of a block: what it adds to the stream.
Branch = Literal["attention", "ffn"]
NormKind = Literal["rms", "layer"]
FeedForwardKind = Literal["swiglu", "gelu"]


class Linear(nn.Linear):
    """`nn.Linear` whose products on a CPU are those of `hiergen.kernels.products`; arguments and parameters are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.packed = PackedWeight()

    def forward(self, input: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        return linear(input, self.weight, self.bias, packed=self.packed)


def add_branches(
    x: Tensor, attend: Callable[[Tensor], Tensor], feed: Callable[[Tensor], Tensor], only: Branch | None
) -> Tensor:
    """Return x += attend(x); x += feed(x); or one of the branches alone, without the stream that it is added to.

    Args:
        x: The stream.
        attend: The attention branch, its norm and scale included.
        feed: The feed-forward branch.
        only: The branch to return alone; None for the block's output.
    """
    if only != "ffn":
        branch = attend(x)
        if only is not None:
            return branch
        x = x + branch
    branch = feed(x)
    return x + branch if only is None else branch


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) over the channels, in float32, times a learned scale of each channel.

    Args:
        dim: Number of channels.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


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


class GeluMLP(nn.Module):
    """fc2(GELU(fc1(x))), with dropout after both linear layers.

    Args:
        dim: Channels of a token.
        hidden_dim: Channels between the two linear layers.
        approximate: GELU itself ("none"), or its tanh approximation.
        dropout: Probability of dropping a channel, in train mode.
    """

    def __init__(
        self, dim: int, hidden_dim: int, *, approximate: Literal["none", "tanh"] = "none", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.approximate = approximate
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        hidden = F.dropout(F.gelu(self.fc1(x), approximate=self.approximate), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class SwiGLU(nn.Module):
    """down(SiLU(gate(x)) * up(x)) without biases, then dropout."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.gate: nn.Linear = Linear(dim, hidden_dim, bias=False)
        self.up: nn.Linear = Linear(dim, hidden_dim, bias=False)
        self.down: nn.Linear = Linear(hidden_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return self.dropout(self.down(F.silu(self.gate(x)) * self.up(x)))


class FusedSwiGLU(nn.Module):
    """w3(SiLU(a) b), where (a, b) are the halves of w12(x): `SwiGLU` with biases, its first two layers stored as one."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12 = Linear(dim, 2 * hidden_dim)
        self.w3 = Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def swiglu_dim(dim: int, multiple: int = 256) -> int:
    """Return 8/3 of `dim`, rounded up to a multiple: the hidden size with which `SwiGLU` is as large as a GELU MLP of ratio 4."""
    return -(-int(8 * dim / 3) // multiple) * multiple


def make_feed_forward(kind: FeedForwardKind, dim: int, ratio: float) -> nn.Module:
    """Return the feed-forward part of a block.

    "gelu" has `ratio * dim` hidden channels and the tanh approximation, "swiglu" two thirds as many, rounded down.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in get_args(FeedForwardKind):
        raise ValueError(f"ffn is {kind!r}, expected one of {get_args(FeedForwardKind)}")
    hidden = int(dim * ratio)
    return FusedSwiGLU(dim, 2 * hidden // 3) if kind == "swiglu" else GeluMLP(dim, hidden, approximate="tanh")


class SelfAttention(nn.Module):
    """proj(attend(q, k, v)) with (q, k, v) = qkv(x), a fused projection that is laid out [q | k | v], then heads.

    Args:
        dim: Channels of a token.
        num_heads: Heads; must divide `dim`.
        use_qk_norm: Normalize the queries and keys of each head (RMSNorm with a weight) before they are rotated.
        qkv_bias: Whether the fused projection has a bias.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, *, use_qk_norm: bool = False, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.q_norm: nn.Module = RMSNorm(dim // num_heads, eps=1e-6) if use_qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(dim // num_heads, eps=1e-6) if use_qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        rotary: Float[Tensor, "2 n half"] | None = None,
        attend: AttendFn = attention,
    ) -> Float[Tensor, "b n d"]:
        """Return the attended tokens. `attend` decides which tokens see which; by default all see all."""
        query, key, value = rearrange(self.qkv(x), "b n (three h k) -> three b n h k", three=3, h=self.num_heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = (apply_rotary(heads, rotary[:, :, None]) for heads in (query, key))
        attended = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(rearrange(attended, "b h n k -> b n (h k)"))
