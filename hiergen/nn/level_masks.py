"""Which levels see which: every mask over levels, as a dense mask and as calls without one.

`BlockCausalMask` is the one rule of the field: a query sees its own group of tokens and every earlier group. ResTok calls it the
hierarchical mask, HAR the group mask, HieraTok scale-causal attention, VAR the block-wise causal mask. Groups are consecutive runs of
tokens and need not be levels: HAR's first tokens are groups of one. `ScaleMask` adds the rules that HieraTok compares it with.

Letters: `n` tokens, `b` batch, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.kernels.attention import attention
from hiergen.kernels.dispatch import is_fast_cpu
from hiergen.kernels.spans import Spans
from hiergen.nn.constants import Constants


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

    def on_cpu(self, device: torch.device) -> Spans | None:
        """Return the mask as spans where the forms for CPUs are taken: `attention` chooses between calls per group and one with a mask."""
        return Spans(tuple(self.spans())) if is_fast_cpu(device) else None


@functools.lru_cache(maxsize=64)
def _dense(mask: BlockCausalMask, device: torch.device) -> Tensor:
    groups = mask.groups(device)
    return groups[:, None] >= groups[None, :]


MaskKind = Literal["scale_causal", "full", "block_diagonal", "reverse", "region"]


AttentionForm = Literal["masked", "grouped", "flex", "xformers"]


@dataclasses.dataclass(frozen=True)
class ScaleMask:
    """The rule of attention between the levels of a sequence.

    Attributes:
        sizes: Tokens of each level, coarse to fine.
        kind: "scale_causal" (own and coarser levels), "full" (all), "block_diagonal" (own level), "reverse" (own and finer) or "region" (own
            level, and of the others what lies in the own region). Regions are the cells of the first level that has several; levels are
            then square maps. A level of one token sees everything and is seen by all.

    Raises:
        ValueError: If the kind is unknown, a level is empty, or one is no square where there are regions.

    Source:
        For "region", DuoFormer, arXiv:2506.12982: attention inside a region over scales. Its attention across regions is here that
        inside a level.
    """

    sizes: tuple[int, ...]
    kind: MaskKind = "scale_causal"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", BlockCausalMask(self.sizes).sizes)
        if self.kind not in get_args(MaskKind):
            raise ValueError(f"mask is {self.kind!r}, expected one of {get_args(MaskKind)}")
        if self.kind == "region" and any(math.isqrt(size) ** 2 != size for size in self.sizes):
            raise ValueError(f"mask is 'region' with levels of {self.sizes} tokens, expected square maps")

    @property
    def is_full(self) -> bool:
        return len(self.sizes) == 1 or self.kind == "full"

    @property
    def is_prefix_exact(self) -> bool:
        """Whether the outputs of coarse levels never depend on finer ones."""
        return len(self.sizes) == 1 or self.kind in ("scale_causal", "block_diagonal")

    def dense(self) -> Bool[Tensor, "n n"]:
        """Return the mask, True where the row's token sees the column's; on the CPU."""
        causal = BlockCausalMask(self.sizes).dense("cpu")
        if self.is_full:
            return torch.ones_like(causal)
        if self.kind == "region":
            regions = self._regions()
            everywhere = regions < 0
            same = regions[:, None] == regions
            return same | everywhere[:, None] | everywhere | (causal & causal.T)
        return {"scale_causal": causal, "block_diagonal": causal & causal.T, "reverse": causal.T}[self.kind]

    def _regions(self) -> Int[Tensor, " n"]:
        """Return the region of every token, by its middle; -1 for a token that is a level of its own."""
        sides = [math.isqrt(size) for size in self.sizes]
        wanted = next((side for side in sides if side > 1), 1)
        found = []
        for side in sides:
            cells = (2 * torch.arange(side, device="cpu") + 1) * wanted // (2 * side)
            names = cells[:, None] * wanted + cells
            found.append(names.flatten() if side > 1 else torch.tensor([-1], device="cpu"))
        return torch.cat(found)

    def spans(self) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
        """Return `(start, end)` of each group of queries, and of the keys that it sees.

        Raises:
            ValueError: If the keys are no such runs, as those of a region are not.
        """
        levels = tuple(BlockCausalMask(self.sizes).spans())
        total = levels[-1][1]
        if self.is_full:
            return ((0, total),), ((0, total),)
        if self.kind == "region":
            raise ValueError("mask is 'region', whose keys are no runs: take attention='masked'")
        keys = {
            "scale_causal": tuple((0, end) for _, end in levels),
            "block_diagonal": levels,
            "reverse": tuple((start, total) for start, _ in levels),
        }[self.kind]
        return levels, keys


class ScaleAttention:
    """Attention by a `ScaleMask` on the whole sequence or on the first levels of it.

    Args:
        mask: Rule of which levels see which.
        form: "masked" is one call with a dense mask, "grouped" one call per level with its keys cut, "flex" and "xformers" are those
            backends of `hiergen.kernels.attention`. They are equal up to rounding.

    Raises:
        ValueError: If the form is unknown.
    """

    def __init__(self, mask: ScaleMask, form: AttentionForm) -> None:
        if form not in get_args(AttentionForm):
            raise ValueError(f"attention is {form!r}, expected one of {get_args(AttentionForm)}")
        self.form = form
        # The rule of a prefix of levels is the corner of the whole rule.
        prefixes = [ScaleMask(mask.sizes[: count + 1], mask.kind) for count in range(len(mask.sizes))]
        self._prefixes = {sum(prefix.sizes): prefix for prefix in prefixes}
        self._spans = {}
        if form != "masked":
            self._spans = {length: Spans(*prefix.spans()) for length, prefix in self._prefixes.items()}
        self._constants = Constants(mask=mask.dense())

    def __call__(
        self, query: Float[Tensor, "b h n k"], key: Float[Tensor, "b h n k"], value: Float[Tensor, "b h n k"]
    ) -> Float[Tensor, "b h n k"]:
        """Return the attended heads; the sequence must end where a level ends.

        Raises:
            ValueError: If it ends inside a level.
        """
        length = query.shape[2]
        if length not in self._prefixes:
            raise ValueError(f"a sequence of {length} tokens ends inside a level; levels end at {list(self._prefixes)}")
        if self._prefixes[length].is_full:
            return attention(query, key, value)
        if self.form == "masked":
            return attention(query, key, value, mask=self._constants.on(query.device)["mask"][:length, :length])
        return attention(query, key, value, spans=self._spans[length], backend=self.form)
