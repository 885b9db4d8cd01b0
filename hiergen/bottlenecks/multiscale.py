"""Multi-scale residual vector quantization: a map is a sum of ever finer maps of codes, all from one codebook.

    R = z, F = 0;  for every level k, coarse to fine:
        ids_k = nearest codes of area(R -> grid k)
        g_k   = phi(bicubic(codes of ids_k -> full grid))
        F += g_k,  R -= g_k
    phi(h) = (1 - r) h + r conv3x3(h)                       some filters, shared by neighboring levels

The codes of a prefix of the levels are F after its last one. What a generator of the next level reads is area(F -> grid k + 1).

Letters: `b` batch, `n` cells of the full grid, `h w` its sides, `m` tokens of some levels, `d` channels of a code, `v` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput
from hiergen.bottlenecks.vector import nearest_ids
from hiergen.nn.running.precision import KeepsFloat32, without_autocast
from hiergen.nn.running.processes import num_processes

#: Shares of the convolution below this are none, as in the official program.
_NO_RATIO = 1e-6
#: Similarities held at one time by the search, 64 MiB in float32.
_SEARCH_CHUNK = 2**24


class MultiScaleQuantizer(KeepsFloat32, Bottleneck):
    """Residual vector quantization over a ladder of grids, learned by gradient.

    Ids of all levels are one sequence, coarse to fine, each grid row by row. Everything is computed in float32 at least, whatever
    autocast says and whatever dtype the model around it has. The search, and what it reads, carries no gradient.

    Args:
        vocab_size: Number of rows of the codebook.
        dim: Channels of a code.
        grids: Height and width of every level, coarse to fine; the last is the full grid.
        num_filters: Number of filters phi: each level takes the nearest on a line (`assign_filters`); 0 gives every level its own.
        filter_ratio: Share r of the convolution in phi; at 0 there are no filters.
        search_cosine: Search by the angle between latent and code; what is looked up is not normalized. False searches by distance.
        commitment_weight: Weight of the loss that pulls latents to their codes (the codebook's own has weight 1).
        track_usage: Keep `usage` in train mode.

    Raises:
        ValueError: If a size is out of range, or a grid is larger than the last.

    Source:
        VAR, arXiv:2404.02905.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        grids: Sequence[tuple[int, int]],
        *,
        num_filters: int = 4,
        filter_ratio: float = 0.5,
        search_cosine: bool = False,
        commitment_weight: float = 0.25,
        track_usage: bool = False,
    ) -> None:
        super().__init__()
        if vocab_size < 1 or dim < 1:
            raise ValueError(f"vocab_size is {vocab_size} and dim is {dim}, expected at least 1")
        self.grids = tuple((int(height), int(width)) for height, width in grids)
        if not self.grids or any(
            not 1 <= side <= full for grid in self.grids for side, full in zip(grid, self.grids[-1], strict=True)
        ):
            raise ValueError(
                f"grids are {self.grids}, expected sides of at least 1, none larger than those of the last grid"
            )
        if num_filters < 0 or not 0 <= filter_ratio <= 1:
            raise ValueError(
                f"num_filters is {num_filters} and filter_ratio {filter_ratio}, expected at least 0, and 0 to 1"
            )
        self.sizes = tuple(height * width for height, width in self.grids)
        self.filter_ratio = filter_ratio
        self.search_cosine = search_cosine
        self.commitment_weight = commitment_weight
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.uniform_(self.codebook, -1.0 / vocab_size, 1.0 / vocab_size)
        count = (num_filters or len(self.grids)) if filter_ratio > _NO_RATIO else 0
        self.filters = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(count))
        self.filter_of = assign_filters(len(self.grids), num_filters)
        self.usage = LevelUsage(vocab_size, self.sizes) if track_usage else None

    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return the codes `(b, n, d)` of all levels together, the ids `(b, m)` of all, and the loss "quantizer".

        The loss is the mean over the levels of the squared error after each. The gradient passes straight through to the latents.
        """
        target = self._map(latents)
        ids, terms, total = [], [], self.zeros(len(latents))
        with without_autocast(latents.device):
            for level, (_, found, grown) in enumerate(self._levels(target.detach())):
                ids.append(found)
                total = total + grown
                commitment = (total.detach() - target).square().mean()
                terms.append(self.commitment_weight * commitment + (total - target.detach()).square().mean())
                if self.usage is not None and self.training:
                    self.usage.note(level, found)
            codes = _sequence(target + (total - target).detach())
            return BottleneckOutput(codes, torch.cat(ids, dim=1), {"quantizer": torch.stack(terms).mean()})

    @torch.no_grad()
    def encode(self, latents: Float[Tensor, "b n d"]) -> Int[Tensor, "b m"]:
        """Return the ids of all levels."""
        with without_autocast(latents.device):
            return torch.cat([ids for _, ids, _ in self._levels(self._map(latents))], dim=1)

    @torch.no_grad()
    def searched(self, latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Return what the codes of all levels were chosen for: the averaged residuals."""
        with without_autocast(latents.device):
            return torch.cat([pooled for pooled, _, _ in self._levels(self._map(latents))], dim=1)

    def lookup(self, ids: Int[Tensor, "b m"]) -> Float[Tensor, "b n d"]:
        """Return the codes that the ids of all levels, or of a prefix of them, stand for together.

        Raises:
            ValueError: If the ids end inside a level.
        """
        return self.combine([self.embed(part) for part in self._split(ids)])

    def combine(self, codes: Sequence[Tensor]) -> Float[Tensor, "b n d"]:
        """Return the sum that the code vectors of the first levels make, one tensor `(b, m, d)` per level."""
        total = self.zeros(len(codes[0]))
        for level, part in enumerate(codes):
            total = total + self.grow(part, level)
        return _sequence(total)

    def inputs(self, ids: Int[Tensor, "b m"]) -> Float[Tensor, "b k d"]:
        """Return what a generator reads to predict every level but the first, from the ids of all; those of the last are not read."""
        parts, total, read = self._split(ids), self.zeros(len(ids)), []
        for level, part in enumerate(parts[:-1]):
            total = total + self.grow(self.embed(part), level)
            read.append(self.pool(total, level + 1))
        return torch.cat(read, dim=1) if read else self.codebook.new_empty(len(ids), 0, self.codebook.shape[1])

    def zeros(self, batch: int) -> Float[Tensor, "b d h w"]:
        """Return the sum of no levels."""
        return self.codebook.new_zeros(batch, self.codebook.shape[1], *self.grids[-1])

    def embed(self, ids: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
        """Return the rows of the codebook that ids name."""
        return F.embedding(ids, self.codebook)

    def mix(self, weights: Float[Tensor, "b m v"]) -> Float[Tensor, "b m d"]:
        """Return mixtures of the codebook's rows, for generators that give soft weights instead of ids."""
        with without_autocast(weights.device):
            return weights.to(self.codebook.dtype) @ self.codebook

    def grow(self, codes: Float[Tensor, "b m d"], level: int) -> Float[Tensor, "b d h w"]:
        """Return what the code vectors of a level add to the sum: made as large as the full grid, then filtered."""
        with without_autocast(codes.device):
            height, width = self.grids[level]
            grown = rearrange(codes.to(self.codebook.dtype), "b (h w) d -> b d h w", h=height, w=width)
            if self.grids[level] != self.grids[-1]:
                grown = F.interpolate(grown, size=self.grids[-1], mode="bicubic")
            if not self.filters:
                return grown
            filtered = self.filters[self.filter_of[level]](grown)
            return (1 - self.filter_ratio) * grown + self.filter_ratio * filtered

    def pool(self, maps: Float[Tensor, "b d h w"], level: int) -> Float[Tensor, "b m d"]:
        """Return maps of the full grid averaged over the areas of a level's cells."""
        same = self.grids[level] == self.grids[-1]
        return _sequence(maps if same else F.interpolate(maps, size=self.grids[level], mode="area"))

    def _levels(self, residual: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield for every level the averaged residuals, their ids, and what these add to the sum."""
        for level in range(len(self.grids)):
            pooled = self.pool(residual, level)
            ids = self._search(pooled)
            grown = self.grow(self.embed(ids), level)
            residual = residual - grown.detach()
            yield pooled, ids, grown

    @torch.no_grad()
    def _search(self, latents: Tensor) -> Tensor:
        codebook = self.codebook.detach()
        if not self.search_cosine:
            return nearest_ids(latents, codebook)
        unit, codes = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
        chunks = unit.flatten(0, 1).split(max(1, _SEARCH_CHUNK // len(codes)))
        return torch.cat([(chunk @ codes.T).argmax(dim=-1) for chunk in chunks]).unflatten(0, latents.shape[:2])

    def _map(self, latents: Tensor) -> Tensor:
        height, width = self.grids[-1]
        return rearrange(latents.to(self.codebook.dtype), "b (h w) d -> b d h w", h=height, w=width)

    def _split(self, ids: Tensor) -> tuple[Tensor, ...]:
        ends = [sum(self.sizes[: count + 1]) for count in range(len(self.sizes))]
        if ids.shape[1] not in ends:
            raise ValueError(
                f"ids holds {ids.shape[1]} tokens per sample, which ends inside a level; levels end at {ends}"
            )
        return ids.split(list(self.sizes[: ends.index(ids.shape[1]) + 1]), dim=1)


class LevelUsage:
    """Moving averages of how often every level chose each code, kept as the official program keeps them.

    The first counts of the first level are taken as they are; all others enter by 1 - decay. Decay is 0.9 for the first hundred calls,
    of which every level is one, then 0.99. Nothing here is saved, and no output depends on it.

    Args:
        vocab_size: Number of codes.
        sizes: Tokens of every level.

    Attributes:
        hits: The averages `(levels, v)`; None before the first call.
    """

    def __init__(self, vocab_size: int, sizes: Sequence[int]) -> None:
        self._vocab_size, self._sizes = vocab_size, tuple(sizes)
        self._num_calls = self._batch = 0
        self.hits: Tensor | None = None

    @torch.no_grad()
    def note(self, level: int, ids: Int[Tensor, "b m"]) -> None:
        """Count the ids of a level in a batch, over all processes."""
        if self.hits is None:
            self.hits = torch.zeros(len(self._sizes), self._vocab_size, device=ids.device)
        flat = ids.flatten()
        counts = self.hits.new_zeros(self._vocab_size).index_add_(0, flat, torch.ones_like(flat, dtype=self.hits.dtype))
        if num_processes() > 1:
            dist.all_reduce(counts)
        decay = 0.0 if self._num_calls == 0 else 0.9 if self._num_calls < 100 else 0.99
        self.hits[level] = decay * self.hits[level] + (1 - decay) * counts
        self._num_calls += 1
        self._batch = len(ids) * num_processes()

    def shares(self, *, by_finest: bool = False) -> tuple[float, ...]:
        """Return which share of the codes every level uses: those with 8 % of the hits that equal use would give each.

        Args:
            by_finest: Reckon equal use with the tokens of the finest level for every level, as the official program does, which
                understates the use by coarse levels.
        """
        if self.hits is None:
            return (0.0,) * len(self._sizes)
        sizes = [self._sizes[-1]] * len(self._sizes) if by_finest else self._sizes
        margins = [0.08 * self._batch * size / self._vocab_size for size in sizes]
        return tuple((row >= margin).float().mean().item() for row, margin in zip(self.hits, margins, strict=True))


def assign_filters(num_levels: int, num_filters: int) -> tuple[int, ...]:
    """Return which filter every level takes: level k lies at k / (num_levels - 1), and takes the filter nearest to it.

    Filters lie in the middles of equal parts of the line, but four of them lie at 1/12, ..., 11/12. Ten levels have two ties between
    four filters, which rounding in float64 decides; published weights need exactly that.

    Args:
        num_levels: Number of levels.
        num_filters: Number of filters; 0 is one for each level.
    """
    if num_filters in (0, 1) or num_levels == 1:
        return tuple(range(num_levels)) if num_filters == 0 else (0,) * num_levels
    margin = 1 / 3 / num_filters if num_filters == 4 else 1 / 2 / num_filters
    places = np.linspace(margin, 1 - margin, num_filters)
    return tuple(int(np.abs(places - level / (num_levels - 1)).argmin()) for level in range(num_levels))


def _sequence(maps: Tensor) -> Tensor:
    return rearrange(maps, "b d h w -> b (h w) d")
