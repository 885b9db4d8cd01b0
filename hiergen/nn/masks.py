"""One attention rule for levels: a query sees its own group of tokens and every earlier group.

ResTok calls it the hierarchical mask, HAR the group mask, HieraTok scale-causal attention, VAR the block-wise causal mask.
Groups are consecutive runs of tokens and need not be levels: HAR's first tokens are groups of one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class BlockCausalMask:
    """Attention mask in which token q sees token k iff group(k) <= group(q).

    Groups of one token give causal attention; a single group gives full attention.

    Attributes:
        sizes: Tokens of each group, in sequence order.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes is {self.sizes}, expected at least one group, each of at least one token")

    @property
    def num_tokens(self) -> int:
        return sum(self.sizes)

    @property
    def ends(self) -> tuple[int, ...]:
        """Position after the last token of each group."""
        total, ends = 0, []
        for size in self.sizes:
            total += size
            ends.append(total)
        return tuple(ends)

    @property
    def is_full(self) -> bool:
        return len(self.sizes) == 1

    def spans(self) -> Iterator[tuple[int, int]]:
        """Yield `(start, end)` of each group: queries start:end see keys :end. Attention in such calls needs no mask."""
        start = 0
        for end in self.ends:
            yield start, end
            start = end

    def groups(self, device: torch.device | str | None = None) -> Int[Tensor, " n"]:
        """Return the group index of every token."""
        index = torch.arange(len(self.sizes), device=device)
        return index.repeat_interleave(torch.tensor(self.sizes, device=device), output_size=self.num_tokens)

    def dense(self, device: torch.device | str | None = None) -> Bool[Tensor, "n n"]:
        """Return the mask as booleans, True where attention is allowed; cached per device, so do not write to it."""
        return _dense(self, torch.device(device) if device is not None else torch.device("cpu"))


@functools.lru_cache(maxsize=64)
def _dense(mask: BlockCausalMask, device: torch.device) -> Tensor:
    groups = mask.groups(device)
    return groups[:, None] >= groups[None, :]
