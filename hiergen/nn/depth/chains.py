"""Layers in chains: the first chains of channels never depend on later ones, so that they are a smaller model by themselves.

    y_i = W_i x_(<= i)        for chain i: channels of the chain from those of its own and all earlier chains

Every layer runs on all channels or on those of the first chains alone; the width of its input says which. Each chain has heads and a norm
of its own. Letters: `b` batch, `n` tokens, `d` channels of the chains that run, `h` their heads, `k` channels of a head.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.blocks.layers import SwiGLU
from hiergen.nn.cache import LayerCache
from hiergen.nn.constants import Constants
from hiergen.nn.positions import apply_rotary


def chain_ends(chains: Sequence[int], size: int) -> tuple[int, ...]:
    """Return where each chain ends among `size` channels that are shared out as `chains` says.

    Raises:
        ValueError: If there is no chain, an empty one, or the channels cannot be shared out so.
    """
    if not chains or min(chains) < 1:
        raise ValueError(f"chains is {list(chains)}, expected numbers of heads, each at least 1")
    total = sum(chains)
    if any(size * part % total for part in chains):
        raise ValueError(
            f"chains is {list(chains)}, which cannot share out {size} channels: expected a multiple of {total}"
        )
    return tuple(itertools.accumulate(size * part // total for part in chains))


class ChainLinear(nn.Linear):
    """A linear layer without bias whose matrix is block lower triangular, stored whole with zeros.

    Args:
        in_features: Channels of the input, of all chains.
        out_features: Channels of the output.
        chains: Relative widths of the chains.
        parts: Number of such matrices that are stacked, e.g. 3 for queries, keys and values.

    Source:
        Chain-of-Model, arXiv:2505.11820.
    """

    def __init__(self, in_features: int, out_features: int, chains: Sequence[int], *, parts: int = 1) -> None:
        super().__init__(in_features, parts * out_features, bias=False)
        self.parts = parts
        self.ins, self.outs = chain_ends(chains, in_features), chain_ends(chains, out_features)
        mask = torch.zeros(parts, out_features, in_features, dtype=torch.bool, device="cpu")
        for start, out_end, in_end in zip((0, *self.outs[:-1]), self.outs, self.ins, strict=True):
            mask[:, start:out_end, :in_end] = True
        self._constants = Constants(mask=mask.flatten(0, 1))
        self.clear()

    @torch.no_grad()
    def clear(self) -> None:
        """Set the entries that no chain reads to zero; call it after weights were drawn."""
        self.weight.mul_(self._constants.on(self.weight.device)["mask"])

    def forward(self, input: Float[Tensor, "... d"]) -> Float[Tensor, "... out"]:
        """Return the output of the chains that the input holds."""
        weight, width = self.weight * self._constants.on(self.weight.device)["mask"], input.shape[-1]
        if width == self.in_features:
            return F.linear(input, weight)
        end = self.outs[self.ins.index(width)]
        return F.linear(input, weight.unflatten(0, (self.parts, -1))[:, :end, :width].flatten(0, 1))


class ChainNorm(nn.Module):
    """`RMSNorm` of every chain's channels by themselves.

    Args:
        dim: Number of channels.
        chains: Relative widths of the chains.
        eps: Added to the mean square.
    """

    def __init__(self, dim: int, chains: Sequence[int], *, eps: float = 1e-5) -> None:
        super().__init__()
        self.ends, self.eps = chain_ends(chains, dim), eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        width, wide = x.shape[-1], x if x.dtype == torch.float64 else x.float()
        spans = [(start, end) for start, end in itertools.pairwise((0, *self.ends)) if end <= width]
        pieces = [F.rms_norm(wide[..., start:end], (end - start,), eps=self.eps) for start, end in spans]
        return torch.cat(pieces, dim=-1).to(x.dtype) * self.weight[:width]


class ChainAttention(nn.Module):
    """Self-attention with rotary positions in which a chain's heads read the keys and values of their own chain.

    Args:
        dim: Channels of all chains.
        chains: Heads of each chain.
        share_kv: Make keys and values from the first chain alone. Query head j then reads key head j modulo their number, the greatest
            common divisor of the chains: not by groups, as grouped-query attention does.
        dropout: Probability of dropping a channel after the output projection.
    """

    def __init__(self, dim: int, chains: Sequence[int], *, share_kv: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        num_heads = sum(chains)
        if dim % (2 * num_heads):
            raise ValueError(f"dim is {dim}, expected a multiple of 2 * sum(chains) = {2 * num_heads}")
        self.head_dim, self.num_kv_heads = dim // num_heads, math.gcd(*chains)
        self.first = chain_ends(chains, dim)[0]
        self.key_value: nn.Linear | None = None
        if share_kv:
            self.query = ChainLinear(dim, dim, chains)
            self.key_value = nn.Linear(self.first, 2 * self.num_kv_heads * self.head_dim, bias=False)
        else:
            self.qkv = ChainLinear(dim, dim, chains, parts=3)
        self.out = ChainLinear(dim, dim, chains)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Float[Tensor, "2 n half"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the attended tokens, of the chains that `x` holds; the arguments are those of `CachedBlock`."""
        heads = x.shape[-1] // self.head_dim
        if self.key_value is None:
            qkv = self.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (3, b, h, n, k)
            query, key, value = qkv[0], qkv[1], qkv[2]
        else:
            query = self.query(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            both = self.key_value(x[..., : self.first]).unflatten(-1, (2, self.num_kv_heads, -1)).permute(2, 0, 3, 1, 4)
            key, value = both[0], both[1]
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        if cache is not None:
            key, value = cache.append(key, value)
        if self.key_value is not None:
            key, value = (kept.repeat(1, heads // self.num_kv_heads, 1, 1) for kept in (key, value))
        attended = attention(query, key, value, mask=mask)
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))


class ChainSwiGLU(SwiGLU):
    """`SwiGLU` in chains, which share the hidden channels out as well."""

    def __init__(self, dim: int, hidden_dim: int, chains: Sequence[int], *, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.gate = ChainLinear(dim, hidden_dim, chains)
        self.up = ChainLinear(dim, hidden_dim, chains)
        self.down = ChainLinear(hidden_dim, dim, chains)
        self.dropout = nn.Dropout(dropout)


class ChainBlock(CachedBlock):
    """`CachedBlock` in chains; one chain is that block.

    Args:
        dim: Channels of all chains.
        chains: Heads of each chain.
        ffn_dim: Hidden size of the feed-forward layer.
        share_kv: Make keys and values from the first chain alone (`ChainAttention`).
        attention_dropout: Probability of dropping a channel after the output projection of attention.
        ffn_dropout: Probability of dropping a channel after the feed-forward layer.

    Source:
        Chain-of-Model, arXiv:2505.11820; with shared keys and values CoLM-Air.
    """

    def __init__(
        self,
        dim: int,
        chains: Sequence[int],
        ffn_dim: int,
        *,
        share_kv: bool = False,
        attention_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
    ) -> None:
        nn.Module.__init__(self)
        self.attention_norm = ChainNorm(dim, chains)  # type: ignore[assignment]
        self.attention = ChainAttention(dim, chains, share_kv=share_kv, dropout=attention_dropout)  # type: ignore[assignment]
        self.ffn_norm = ChainNorm(dim, chains)  # type: ignore[assignment]
        self.ffn = ChainSwiGLU(dim, ffn_dim, chains, dropout=ffn_dropout)
