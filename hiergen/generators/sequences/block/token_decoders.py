"""From the context of a block to the logits of its ids: a small transformer that sees the context and the ids of its own block alone.

The context becomes some vectors by one linear map. Position t of the block is predicted from them and the ids before t.

Letters: `m` blocks, `l` ids of a block, `p` vectors of a context, `d` channels of a context, `e` channels of an id, `v` vocabulary.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.placed import NeoXBlock, Sight, SlotCache, new_caches, rotary_of
from hiergen.nn.blocks.relative import RelativeStack

TokenDecoderKind = Literal["prefix", "summation", "cross_attention", "cross_attention_summation"]


class BlockCache:
    """What a token decoder keeps of the open block of each row.

    Attributes:
        layers: Keys and values of each layer.
        expanded: Vectors of the context, `(b, p, e)`; None before the first block.
    """

    def __init__(self, layers: list[SlotCache], batch: int) -> None:
        self.layers, self._batch = layers, batch
        self.expanded: Tensor | None = None

    def begin(self, expanded: Float[Tensor, "m p e"], rows: Int[Tensor, " m"]) -> None:
        """Note the context with which some rows begin a block."""
        if self.expanded is None:
            self.expanded = expanded.new_zeros(self._batch, *expanded.shape[1:])
        self.expanded[rows] = expanded


class TokenDecoder(nn.Module, abc.ABC):
    """What both token decoders share.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        context_dim: Channels of a context.
        dim: Channels of an id.
        num_vectors: Vectors that a context becomes.
        begin_id: Id that stands before the first of a block where there is no prefix.
    """

    def __init__(
        self, vocab_size: int, length: int, context_dim: int, dim: int, num_vectors: int, begin_id: int
    ) -> None:
        super().__init__()
        if not 0 <= begin_id < vocab_size:
            raise ValueError(f"begin_id is {begin_id}, expected 0 to {vocab_size - 1}")
        self.length, self.begin_id, self.num_vectors = length, begin_id, num_vectors
        self.table = nn.Embedding(vocab_size, dim)
        self.expansion = nn.Linear(context_dim, num_vectors * dim)

    def expand(self, context: Float[Tensor, "m d"]) -> Float[Tensor, "m p e"]:
        """Return the vectors of the contexts."""
        return self.expansion(context).unflatten(-1, (self.num_vectors, -1))

    @abc.abstractmethod
    def forward(
        self,
        context: Float[Tensor, "m d"],
        ids: Int[Tensor, "m l"],
        seen: Bool[Tensor, "m l"],
        run: Callable[..., Any],
    ) -> Float[Tensor, "m l v"]:
        """Return the logits of all ids of some blocks.

        Args:
            context: Contexts of the blocks.
            ids: Their ids, of which the last is not read.
            seen: Which ids are no padding.
            run: Calls the layers.
        """

    @abc.abstractmethod
    def new_cache(self, batch: int) -> BlockCache:
        """Return an empty cache."""

    @abc.abstractmethod
    def begin(self, context: Float[Tensor, "m d"], cache: BlockCache, rows: Int[Tensor, " m"]) -> Float[Tensor, "m v"]:
        """Begin a block in some rows of the cache; return the logits of its first id."""

    @abc.abstractmethod
    def step(
        self, ids: Int[Tensor, " m"], places: Int[Tensor, " m"], cache: BlockCache, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        """Read an id of the open block of some rows, at its place in the block; return the logits of the next one."""

    def _shifted(self, ids: Int[Tensor, "m l"], seen: Bool[Tensor, "m l"]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of [begin, x_0, ... x_l-2], and which of them are seen."""
        begin = torch.full_like(ids[:, :1], self.begin_id)
        shifted = torch.cat((begin, ids[:, :-1]), dim=1)
        return self.table(shifted), torch.cat((torch.ones_like(seen[:, :1]), seen[:, :-1]), dim=1)


class NeoXTokenDecoder(TokenDecoder):
    """GPT-NeoX inside the block, with the context as a prefix, or added to the ids.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        context_dim: Channels of a context.
        dim: Channels of an id.
        depth: Number of layers.
        num_heads: Attention heads.
        prefix_length: Vectors in front of the ids; 0 adds a vector to each id instead.
        begin_id: Id before the first where nothing is in front.
        shared_prefix_position: In steps, number all vectors of the prefix 0 and the ids 1, 2, ... as the released generation does. Passes
            over whole blocks number them 0, 1, 2, ... always, as in training.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        context_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        prefix_length: int,
        begin_id: int,
        shared_prefix_position: bool,
    ) -> None:
        super().__init__(vocab_size, length, context_dim, dim, prefix_length or length, begin_id)
        self.prefix_length, self.shared_prefix_position = prefix_length, shared_prefix_position
        self.blocks = nn.ModuleList(NeoXBlock(dim, num_heads, 4 * dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)

    def forward(
        self,
        context: Float[Tensor, "m d"],
        ids: Int[Tensor, "m l"],
        seen: Bool[Tensor, "m l"],
        run: Callable[..., Any],
    ) -> Float[Tensor, "m l v"]:
        expanded = self.expand(context)
        if self.prefix_length:
            x = torch.cat((expanded, self.table(ids[:, :-1])), dim=1)
            known = torch.cat((torch.ones_like(seen[:, :1]).expand(-1, self.prefix_length), seen[:, :-1]), dim=1)
        else:
            x, known = self._shifted(ids, seen)
            x = x + expanded
        sight = Sight.of_rows(x.shape[1], device=x.device)
        # Padding sees itself, so that no row of scores is empty.
        mask = sight.mask & (known[:, None] | torch.eye(x.shape[1], dtype=torch.bool, device=x.device))
        sight = Sight(mask=mask, positions=sight.positions)
        rotary = rotary_of(self.blocks, sight)
        for block in self.blocks:
            x = run(block, x, sight, rotary)
        return self.head(self.norm(x[:, -self.length :]))

    def new_cache(self, batch: int) -> BlockCache:
        return BlockCache(new_caches(len(self.blocks), batch, self._num_slots), batch)

    @property
    def _num_slots(self) -> int:
        return self.prefix_length + self.length

    def begin(self, context: Float[Tensor, "m d"], cache: BlockCache, rows: Int[Tensor, " m"]) -> Float[Tensor, "m v"]:
        expanded = self.expand(context)
        cache.begin(expanded, rows)
        if not self.prefix_length:
            begin = torch.full_like(rows, self.begin_id)
            return self._add(self.table(begin)[:, None] + expanded[:, :1], torch.zeros_like(rows), cache, rows)
        return self._add(expanded, torch.zeros_like(rows), cache, rows)

    def step(
        self, ids: Int[Tensor, " m"], places: Int[Tensor, " m"], cache: BlockCache, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        x = self.table(ids)
        if self.prefix_length:
            return self._add(x[:, None], places + self.prefix_length, cache, rows)
        assert cache.expanded is not None
        # The id at place t is read at position t + 1, behind the begin.
        return self._add((x + cache.expanded[rows, places + 1])[:, None], places + 1, cache, rows)

    def _add(
        self, x: Float[Tensor, "m n e"], first: Int[Tensor, " m"], cache: BlockCache, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        slots = first[:, None] + torch.arange(x.shape[1], device=x.device)
        positions = (slots - self.prefix_length + 1).clamp(min=0) if self.shared_prefix_position else slots
        sight = Sight.of_slots(slots, self._num_slots, rows, positions=positions)
        rotary = rotary_of(self.blocks, sight)
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, sight, rotary, layer)
        return self.head(self.norm(x[:, -1]))


class T5TokenDecoder(TokenDecoder):
    """A T5 decoder inside the block, with the context as its memory; its head is the table of the ids.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        context_dim: Channels of a context.
        dim: Channels of an id.
        depth: Number of layers.
        num_heads: Attention heads.
        begin_id: Id before the first.
        adds_context: Add the vectors of the context to the ids besides.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        context_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        begin_id: int,
        adds_context: bool,
    ) -> None:
        super().__init__(vocab_size, length, context_dim, dim, length, begin_id)
        self.adds_context = adds_context
        self.decoder = RelativeStack(dim, depth, num_heads, 4 * dim, is_decoder=True)

    def forward(
        self,
        context: Float[Tensor, "m d"],
        ids: Int[Tensor, "m l"],
        seen: Bool[Tensor, "m l"],
        run: Callable[..., Any],
    ) -> Float[Tensor, "m l v"]:
        memory = self.expand(context)
        x, known = self._shifted(ids, seen)
        sight = Sight.of_rows(self.length, device=x.device)
        mask = sight.mask & (known[:, None] | torch.eye(self.length, dtype=torch.bool, device=x.device))
        x = run(self.decoder, x + memory if self.adds_context else x, mask, memory)
        return self._head(x)

    def _head(self, x: Float[Tensor, "... e"]) -> Float[Tensor, "... v"]:
        return x * x.shape[-1] ** -0.5 @ self.table.weight.T

    def new_cache(self, batch: int) -> BlockCache:
        return BlockCache(new_caches(len(self.decoder.blocks), batch, self.length), batch)

    def begin(self, context: Float[Tensor, "m d"], cache: BlockCache, rows: Int[Tensor, " m"]) -> Float[Tensor, "m v"]:
        cache.begin(self.expand(context), rows)
        return self._add(torch.full_like(rows, self.begin_id), torch.zeros_like(rows), cache, rows)

    def step(
        self, ids: Int[Tensor, " m"], places: Int[Tensor, " m"], cache: BlockCache, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        return self._add(ids, places + 1, cache, rows)

    def _add(
        self, ids: Int[Tensor, " m"], slots: Int[Tensor, " m"], cache: BlockCache, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m v"]:
        assert cache.expanded is not None
        x, memory = self.table(ids), cache.expanded[rows]
        x = x + cache.expanded[rows, slots] if self.adds_context else x
        sight = Sight.of_slots(slots[:, None], self.length, rows)
        return self._head(self.decoder(x[:, None], sight.mask, memory, sight, cache.layers)[:, 0])


def make_token_decoder(
    kind: TokenDecoderKind,
    vocab_size: int,
    length: int,
    context_dim: int,
    dim: int,
    depth: int,
    num_heads: int,
    *,
    prefix_length: int,
    begin_id: int,
    shared_prefix_position: bool,
) -> TokenDecoder:
    """Return a token decoder by its kind; the arguments are those of the classes."""
    if kind in ("prefix", "summation"):
        return NeoXTokenDecoder(
            vocab_size,
            length,
            context_dim,
            dim,
            depth,
            num_heads,
            prefix_length=prefix_length if kind == "prefix" else 0,
            begin_id=begin_id,
            shared_prefix_position=shared_prefix_position,
        )
    return T5TokenDecoder(
        vocab_size,
        length,
        context_dim,
        dim,
        depth,
        num_heads,
        begin_id=begin_id,
        adds_context=kind == "cross_attention_summation",
    )
