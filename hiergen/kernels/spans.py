"""Which queries see which keys, as consecutive spans: the form of a mask over levels that every attention backend can use."""

from __future__ import annotations

import dataclasses
import functools

import torch
from jaxtyping import Bool, Int
from torch import Tensor

#: Where a run of tokens starts and ends.
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Spans:
    """Consecutive groups of queries that together are all queries, and for each the one run of keys that it sees.

    Attributes:
        queries: `(start, end)` of each group, in order.
        keys: `(start, end)` of the keys that each group sees; by default all keys up to the group's end, which is block-causal.

    Raises:
        ValueError: If the groups are not consecutive from 0, or a group or its keys are empty.
    """

    queries: tuple[Span, ...]
    keys: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", tuple(self.queries))
        object.__setattr__(self, "keys", tuple(self.keys) or tuple((0, end) for _, end in self.queries))
        starts, ends = [start for start, _ in self.queries], [end for _, end in self.queries]
        if starts != [0, *ends[:-1]] or not all(start < end for start, end in self.queries):
            raise ValueError(f"queries is {self.queries}, expected consecutive groups from 0, none of them empty")
        if len(self.keys) != len(self.queries) or not all(0 <= start < end for start, end in self.keys):
            raise ValueError(f"keys is {self.keys}, expected a run of keys for each of the {len(self.queries)} groups")

    @property
    def num_queries(self) -> int:
        return self.queries[-1][1]

    @property
    def num_keys(self) -> int:
        """How many keys there must be at least."""
        return max(end for _, end in self.keys)

    def bounds(self, device: torch.device) -> Int[Tensor, "2 q"]:
        """Return the first key that each query sees, and the one behind the last; made once for each device."""
        return _bounds(self, device)

    def dense(self, num_keys: int, device: torch.device) -> Bool[Tensor, "q n"]:
        """Return the mask, True where the row's query sees the column's key; made once for each device, so do not write to it."""
        return _dense(self, num_keys, device)


# A tensor made in inference mode could not take part in a later training step.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _bounds(spans: Spans, device: torch.device) -> Tensor:
    lengths = torch.tensor([end - start for start, end in spans.queries])
    return torch.tensor(spans.keys).repeat_interleave(lengths, dim=0).T.contiguous().to(device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _dense(spans: Spans, num_keys: int, device: torch.device) -> Tensor:
    first, last = _bounds(spans, device)
    place = torch.arange(num_keys, device=device)
    return (first[:, None] <= place) & (place < last[:, None])
