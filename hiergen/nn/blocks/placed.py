"""Causal transformers over rows of different lengths: blocks that are told where each token stands, and what it sees.

A full pass takes whole rows. With `SlotCache`s, some rows of a batch go on by some tokens, each row at a place of its own.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head, `t` slots of a cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import GeluMLP, RMSNorm, SwiGLU
from hiergen.nn.positions import apply_rotary, rotary_table


class SlotCache:
    """Keys and values of one attention layer in numbered slots, of which each row of a batch fills its own.

    A slot that was written before is overwritten, so a row starts anew by writing its slot 0 again.

    Args:
        batch: Number of rows.
        num_slots: Number of slots of each row.
    """

    def __init__(self, batch: int, num_slots: int) -> None:
        self._sizes = (batch, num_slots)
        self._storage: Tensor | None = None

    def append(
        self, key: Float[Tensor, "b h n k"], value: Float[Tensor, "b h n k"], sight: Sight
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t k"]]:
        """Store keys and values in the slots of `sight`; return those of all slots of its rows.

        Raises:
            ValueError: If a slot is beyond the last.
        """
        batch, num_slots = self._sizes
        assert sight.slots is not None
        assert sight.rows is not None
        if self._storage is None:
            # Zeros, since a masked value that is not finite would be seen all the same.
            self._storage = key.new_zeros(2, batch, num_slots, key.shape[1], key.shape[3])
        if int(sight.slots.max()) >= num_slots:
            raise ValueError(
                f"the cache holds {num_slots} tokens of each row, one at {int(sight.slots.max())} was given"
            )
        for part, new in zip(self._storage, (key, value), strict=True):
            part[sight.rows[:, None], sight.slots] = new.transpose(1, 2)
        keys, values = self._storage[:, sight.rows].transpose(2, 3)
        return keys, values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sight:
    """Where the tokens of a pass stand and what each sees: what all layers of a stack share.

    Attributes:
        mask: Which keys each token sees: `(n, n)`, or where rows differ `(b, n, t)`.
        positions: Positions that rotations turn by, `(1, n)` or `(b, n)`.
        slots: Slots of the caches that the tokens go to, `(b, n)`; None without caches.
        rows: Rows of the caches that go on, `(b,)`; None without caches.
    """

    mask: Bool[Tensor, "*rows n t"]
    positions: Int[Tensor, "one n"]
    slots: Int[Tensor, "b n"] | None = None
    rows: Int[Tensor, " b"] | None = None

    @classmethod
    def of_rows(cls, count: int, *, device: torch.device, window: int | None = None) -> Sight:
        """Return that of whole rows of `count` tokens; `window` is the number of tokens seen, the token itself counted."""
        places = torch.arange(count, device=device)
        lag = places[:, None] - places
        return cls(mask=(lag >= 0) if window is None else (lag >= 0) & (lag < window), positions=places[None])

    @classmethod
    def of_slots(
        cls,
        slots: Int[Tensor, "b n"],
        num_slots: int,
        rows: Int[Tensor, " b"],
        *,
        positions: Int[Tensor, "b n"] | None = None,
        window: int | None = None,
    ) -> Sight:
        """Return that of rows that go on at some slots of caches; positions are the slots unless given."""
        lag = slots[:, :, None] - torch.arange(num_slots, device=slots.device)
        mask = (lag >= 0) if window is None else (lag >= 0) & (lag < window)
        return cls(mask=mask, positions=slots if positions is None else positions, slots=slots, rows=rows)

    def rotary(self, rotary_dim: int, theta: float) -> Float[Tensor, "2 one 1 n half"]:
        """Return the rotary table of the positions, for heads before tokens."""
        table = rotary_table(self.positions.reshape(-1, 1).double(), rotary_dim, theta=theta)
        return table.unflatten(1, self.positions.shape)[:, :, None]


class PlacedAttention(nn.Module):
    """Self-attention whose rotations turn the first channels of each head, with keys and values shared by groups of heads.

    Args:
        dim: Channels of a token.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of keys and values, a divisor of `num_heads`; None is as many.
        head_dim: Channels of a head; None is `dim / num_heads`.
        rotary_dim: Channels of a head that are turned; None is all.
        bias: Whether the linear layers have biases.
        use_qk_norm: Normalize the queries and keys of each head (RMSNorm with a weight) before they are turned.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_dim: int | None = None,
        bias: bool = False,
        use_qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (head_dim is None and dim % num_heads):
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        kv_heads, head_dim = num_kv_heads or num_heads, head_dim or dim // num_heads
        if num_heads % kv_heads:
            raise ValueError(f"num_kv_heads is {kv_heads}, expected a divisor of num_heads {num_heads}")
        self.rotary_dim = head_dim if rotary_dim is None else rotary_dim
        if self.rotary_dim < 2 or self.rotary_dim % 2 or self.rotary_dim > head_dim:
            raise ValueError(f"rotary_dim is {self.rotary_dim}, expected an even number, 2 to {head_dim}")
        self.sizes, self.head_dim = (num_heads, kv_heads, kv_heads), head_dim
        self.qkv = nn.Linear(dim, sum(self.sizes) * head_dim, bias=bias)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=bias)
        self.q_norm: nn.Module = RMSNorm(head_dim) if use_qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(head_dim) if use_qk_norm else nn.Identity()

    def forward(
        self, x: Float[Tensor, "b n d"], sight: Sight, rotary: Tensor, cache: SlotCache | None = None
    ) -> Float[Tensor, "b n d"]:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split(self.sizes, dim=1)
        query, key = turn(self.q_norm(query), rotary), turn(self.k_norm(key), rotary)
        if cache is not None:
            key, value = cache.append(key, value, sight)
        return self.out(attend(query, key, value, sight.mask).transpose(1, 2).flatten(2))


def turn(heads: Float[Tensor, "b h n k"], rotary: Tensor) -> Float[Tensor, "b h n k"]:
    """Rotate as many of the first channels of each head as the table has pairs for."""
    count = 2 * rotary.shape[-1]
    turned = apply_rotary(heads[..., :count], rotary)
    return turned if count == heads.shape[-1] else torch.cat((turned, heads[..., count:]), dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return attention under a mask of its own for each row `(b, n, t)`, or one for all `(n, t)`; key heads may be fewer."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if mask.ndim == 2:
        return attention(query, key, value, mask=mask)
    # Not kernels.attention, which has one mask for all rows.
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])


class NeoXBlock(nn.Module):
    """x + Attn(LN1(x)) + MLP(LN2(x)): two parallel branches, biases everywhere, exact GELU, a quarter of each head turned.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLP.

    Source:
        GPT-NeoX, arXiv:2204.06745.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = PlacedAttention(dim, num_heads, rotary_dim=dim // num_heads // 4, bias=True)
        self.mlp = GeluMLP(dim, ffn_dim)

    def forward(
        self, x: Float[Tensor, "b n d"], sight: Sight, rotary: Tensor, cache: SlotCache | None = None
    ) -> Float[Tensor, "b n d"]:
        return x + self.attention(self.norm1(x), sight, rotary, cache) + self.mlp(self.norm2(x))


class LlamaBlock(nn.Module):
    """x += Attn(RMS(x)); x += SwiGLU(RMS(x)), without biases, with grouped key heads and normalized heads where asked for.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the feed-forward layer.
        num_kv_heads: Heads of keys and values; None is as many.
        head_dim: Channels of a head; None is `dim / num_heads`.
        use_qk_norm: Normalize the queries and keys of each head.

    Source:
        LLaMA, arXiv:2302.13971, and Llama 3, arXiv:2407.21783.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        ffn_dim: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        use_qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.attention = PlacedAttention(
            dim, num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, use_qk_norm=use_qk_norm
        )
        self.ffn = SwiGLU(dim, ffn_dim)

    def forward(
        self, x: Float[Tensor, "b n d"], sight: Sight, rotary: Tensor, cache: SlotCache | None = None
    ) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x), sight, rotary, cache)
        return x + self.ffn(self.norm2(x))


def new_caches(count: int, batch: int, num_slots: int) -> list[SlotCache]:
    """Return an empty cache for each of `count` layers."""
    return [SlotCache(batch, num_slots) for _ in range(count)]


def rotary_of(layers: Sequence[Any] | nn.ModuleList, sight: Sight, theta: float = 10000.0) -> Tensor:
    """Return the rotary table that the layers of a stack share, which have an `attention` of their own."""
    attention_of_first = layers[0].attention
    assert isinstance(attention_of_first, PlacedAttention)
    return sight.rotary(attention_of_first.rotary_dim, theta)
