"""A plan: at which pool every query block reads every key block. Made without gradient, an input of the operation.

Letters: `b` batch, `h` query heads, `i` query blocks, `j` key blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from hiergen.kernels.pyramid_attention.pooling import POOLS, TailRule, padded_length

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PlanLists:
    """The plan as the kernels walk it.

    Attributes:
        ids: Key blocks per row: those read at pool 1, then 2, 4, 8, then the skipped ones; ascending inside each pool.
        counts: Eight numbers per row: blocks at each pool, then how many of those need no mask (no ragged end, wholly
            before the diagonal). Blocks that need a mask are the last of their pool, because ids ascend.
        order: Rows of each head, longest first, so that no long row starts last.
    """

    ids: Int[Tensor, "b h i j"]
    counts: Int[Tensor, "b h i 8"]
    order: Int[Tensor, "b h i"]


@dataclasses.dataclass(frozen=True)
class PyramidPlan:
    """Pools of all (query block, key block) pairs, with the lengths they were made for.

    Attributes:
        pools: Keys averaged into one per pair of blocks: 1, 2, 4 or 8, or 0 where the key block is skipped.
        num_queries: Length of the queries, in tokens.
        num_keys: Length of the keys, in tokens.
        query_block: Queries per block, a power of two, at least 16.
        key_block: Keys per block, a power of two, at least 16.
        is_causal: A query sees keys up to its own position; a pooled key is seen once its last member is.
        key_offset: Keys before the first query (cached prefix, earlier chunks): query t stands at `key_offset + t`.
        tail: How pooled keys at a ragged end are made; see `build_pyramid`.
        lists: The plan as the kernels walk it; `planning.lists.with_lists` fills it.
    """

    pools: UInt8[Tensor, "b h i j"]
    num_queries: int
    num_keys: int
    query_block: int = 128
    key_block: int = 128
    is_causal: bool = False
    key_offset: int = 0
    tail: TailRule = "exact"
    lists: PlanLists | None = None

    def __post_init__(self) -> None:
        for name in ("query_block", "key_block"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"{name} is {size}, expected a power of two of at least 16")
        if self.num_queries < 1 or self.num_keys < 1:
            raise ValueError(
                f"the plan is for {self.num_queries} queries and {self.num_keys} keys, expected at least one of each"
            )
        blocks = (-(-self.num_queries // self.query_block), -(-self.num_keys // self.key_block))
        if self.pools.dim() != 4 or tuple(self.pools.shape[2:]) != blocks:
            raise ValueError(
                f"pools has shape {tuple(self.pools.shape)}, expected (batch, heads, {blocks[0]}, {blocks[1]}) for "
                f"{self.num_queries} queries and {self.num_keys} keys in blocks of {self.query_block} and {self.key_block}"
            )
        if self.pools.dtype != torch.uint8:
            raise ValueError(f"pools is {self.pools.dtype}, expected torch.uint8")
        if self.key_offset < 0:
            raise ValueError(f"key_offset is {self.key_offset}, expected the number of keys before the first query")

    @property
    def padded_keys(self) -> int:
        """Keys rounded up to whole blocks."""
        return padded_length(self.num_keys, self.key_block)

    @property
    def pooled_limit(self) -> int:
        """Keys that pools 2, 4 and 8 count: the real ones, or with the tail replicated all of the padded length."""
        return self.padded_keys if self.tail == "replicate" else self.num_keys

    @property
    def density(self) -> Tensor:
        """Share of the dense product that the plan computes: mean of 1/pool over the cells it may read, a scalar tensor.

        A causal plan may read the cells on and below the diagonal.
        """
        weight = torch.where(self.pools > 0, 1.0 / self.pools.clamp(min=1).float(), 0.0)
        seen = self.visible_blocks()
        inside = torch.arange(self.pools.shape[3], device=self.pools.device) < seen[:, None]
        return (weight * inside).sum() / (inside.sum() * self.pools.shape[0] * self.pools.shape[1])

    @property
    def coverage(self) -> Tensor:
        """Share of all cells that are read at any pool, a scalar tensor."""
        return (self.pools > 0).float().mean()

    def visible_blocks(self) -> Int[Tensor, " i"]:
        """Return how many key blocks each query block may see."""
        return visible_blocks(self, device=self.pools.device)

    def unmasked_blocks(self) -> Int[Tensor, " i"]:
        """Return how many leading key blocks every query of a block sees whole."""
        rows = torch.arange(self.pools.shape[2], device=self.pools.device)
        whole = torch.full_like(rows, self.num_keys // self.key_block)
        if self.is_causal:
            first = self.key_offset + rows * self.query_block
            whole = torch.minimum(whole, (first + 1) // self.key_block)
        return whole

    def force_full(self, *, keys: Iterable[Span] = (), queries: Iterable[Span] = ()) -> PyramidPlan:
        """Return the plan with every block that touches these token spans read at pool 1 (text, sinks).

        Args:
            keys: `(start, end)` of key tokens that all queries read in full.
            queries: `(start, end)` of query tokens that read all keys in full.

        Raises:
            ValueError: If a span does not lie inside the sequence.
        """
        pools = self.pools.clone()
        for start, end in keys:
            _check_span("keys", start, end, self.num_keys)
            pools[..., start // self.key_block : -(-end // self.key_block)] = 1
        for start, end in queries:
            _check_span("queries", start, end, self.num_queries)
            pools[..., start // self.query_block : -(-end // self.query_block), :] = 1
        return dataclasses.replace(self, pools=pools, lists=None)

    def validate(self) -> PyramidPlan:
        """Return the plan after a check of every value of `pools`; it waits for the device, so keep it out of inner loops.

        Raises:
            ValueError: If a value is no pool.
        """
        wrong = ~torch.isin(self.pools, torch.tensor([0, *POOLS], dtype=torch.uint8, device=self.pools.device))
        if wrong.any():
            raise ValueError(f"pools holds {int(self.pools[wrong][0])}, expected 0 (skip), 1, 2, 4 or 8")
        return self


def full_plan(
    num_queries: int,
    num_keys: int,
    *,
    pool: int = 1,
    heads: int = 1,
    query_block: int = 128,
    key_block: int = 128,
    is_causal: bool = False,
    device: torch.device | str | None = None,
) -> PyramidPlan:
    """Return a plan that reads everything at one pool, for any batch; pool 1 is dense attention.

    Args:
        pool: Pool of every block.
        heads: Heads of the plan; 1 serves any number.
    """
    shape = (1, heads, -(-num_queries // query_block), -(-num_keys // key_block))
    pools = torch.full(shape, pool, dtype=torch.uint8, device=device)
    # A query's position counts from the end of the keys, as for a cached prefix.
    offset = max(num_keys - num_queries, 0) if is_causal else 0
    return PyramidPlan(pools, num_queries, num_keys, query_block, key_block, is_causal, offset)


def visible_blocks(plan: PyramidPlan, *, device: torch.device | None = None) -> Int[Tensor, " i"]:
    """Return how many leading key blocks hold at least one key that some query of the block may see."""
    num_rows = -(-plan.num_queries // plan.query_block)
    num_columns = -(-plan.num_keys // plan.key_block)
    rows = torch.arange(num_rows, device=device)
    if not plan.is_causal:
        return torch.full_like(rows, num_columns)
    last = plan.key_offset + torch.clamp((rows + 1) * plan.query_block, max=plan.num_queries) - 1
    return (last // plan.key_block + 1).clamp(max=num_columns)


def sort_by_pool(pools: UInt8[Tensor, "b h i j"]) -> tuple[Int[Tensor, "b h i j"], Int[Tensor, "b h i 4"]]:
    """Return the column ids of each row, pool 1 first and skipped last, ascending inside a pool; and the counts of the pools."""
    # 0 - 1 wraps to 255 in uint8, so that skipped cells sort last.
    ids = (pools - 1).sort(dim=-1, stable=True).indices.to(torch.int32)
    counts = torch.stack([(pools == pool).sum(-1, dtype=torch.int32) for pool in POOLS], dim=-1)
    return ids, counts


def _check_span(name: str, start: int, end: int, length: int) -> None:
    if not 0 <= start < end <= length:
        raise ValueError(f"{name} holds the span ({start}, {end}), expected 0 <= start < end <= {length}")
