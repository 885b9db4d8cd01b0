"""The values of an occupancy field on a grid that is refined where the surface is.

Needs only a function of points, `(p, 3) -> (p,)`, positive inside; whose function it is does not matter.

Letters: `p` points, `n` nodes of the grid along an axis, `m` cells along an axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.checked import Checked

#: The field of one shape: coordinates `(p, 3)`, float32 -> values `(p,)`, above the level inside.
Field = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class ExtractionSettings(Checked):
    """How finely and where to look for a surface.

    Attributes:
        depth: Fineness of the grid, which has `2 ** depth + 1` nodes along each axis; 7 gives 129, 9 gives 513.
        coarse_depth: The grid that is evaluated in full; every finer one only near the surface. At `depth` or above, all of it.
        margin: Number of cells around each crossing of the coarse grid that are refined too, against parts that it misses.
        slack: A cell without a crossing is refined too if its corners are closer to the level, on average, than `slack` times what
            the field changes over a cell's side: something thin may pass between them. 0 trusts the signs alone. Where the field is a
            distance, an extended sheet of any place and direction is found from 0.5 on, and up to 0.5 nothing is refined in vain beside
            the plane faces of a solid.
        level: Value of the surface (a logit: 0 is probability one half).
        bound: Half the side of the box, which is centered at the origin.
        chunk_size: Number of points evaluated at once; it bounds the memory and does not change the result.
        is_closed: Close the mesh where the shape leaves the box.
        max_faces: Simplify to at most about as many triangles; None keeps all. What was closed stays closed, unless these are
            too few for its holes and handles.
    """

    depth: int = 7
    coarse_depth: int = 5
    margin: int = 1
    slack: float = 0.6
    level: float = 0.0
    bound: float = 1.05
    chunk_size: int = 32_768
    is_closed: bool = True
    max_faces: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("depth", 1), ("coarse_depth", 1), ("margin", 0), ("slack", 0), ("chunk_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.bound <= 0:
            raise ValueError(f"bound is {self.bound}, expected a positive number")
        if self.max_faces is not None and self.max_faces < 4:
            raise ValueError(f"max_faces is {self.max_faces}, expected at least 4, or None")


@dataclasses.dataclass(frozen=True)
class FieldGrid:
    """Values of a field on the nodes of a regular grid, x first.

    Attributes:
        values: `(n, n, n)`, float32. Nodes far from the surface may hold the value of a coarser neighbor: its sign is right,
            and every cell that the surface crosses has its own eight values.
        is_evaluated: Where the value is the field's own.
        num_queries: Points at which the field was evaluated.
    """

    values: Float[Tensor, "n n n"]
    is_evaluated: Bool[Tensor, "n n n"]
    num_queries: int


@torch.no_grad()
def evaluate_grid(
    field: Field, settings: ExtractionSettings | None = None, *, device: torch.device | str = "cpu"
) -> FieldGrid:
    """Return the field on the grid, evaluated where its surface is.

    The coarse grid is evaluated in full. Then, grid by grid, the cells near a crossing are halved, and so are their neighbors
    for as long as the surface leaves what has been evaluated: a surface that the coarse grid meets anywhere is followed to its
    end. What can be missed is a detached part (or hole) between coarse nodes whose neighborhood gives no sign of it.

    Args:
        field: The function of one shape.
        settings: Resolution, box and level.
        device: Device on which `field` computes.
    """
    settings = settings or ExtractionSettings()
    sampler = _Sampler(field, settings, torch.device(device))
    depth = min(settings.coarse_depth, settings.depth)
    values = sampler.everywhere(depth)
    known = torch.ones_like(values, dtype=torch.bool)
    for finer in range(depth + 1, settings.depth + 1):
        # Deeper grids inherit the margin: it only guards what the coarse grid may have missed.
        margin = settings.margin if finer == depth + 1 else 0
        active = _cells_near_surface(values, known, settings, margin)
        values, known = _refine(values, known, active, sampler, finer)
    return FieldGrid(values, known, sampler.num_queries)


class _Sampler:
    """Evaluates a field at nodes of a grid, given by their flat indices, and counts the queries."""

    def __init__(self, field: Field, settings: ExtractionSettings, device: torch.device) -> None:
        self.field, self.settings, self.device = field, settings, device
        self.num_queries = 0

    def everywhere(self, depth: int) -> Float[Tensor, "n n n"]:
        """Return the values on a whole grid; only a chunk of its nodes exists at a time."""
        nodes, size = 2**depth + 1, self.settings.chunk_size
        total = nodes**3
        spans = [(start, min(start + size, total)) for start in range(0, total, size)]
        parts = [self._chunk(torch.arange(*span, device=self.device), depth) for span in spans]
        return torch.cat(parts).view(nodes, nodes, nodes)

    def at(self, ids: Int[Tensor, " p"], depth: int) -> Float[Tensor, " p"]:
        return torch.cat([self._chunk(part, depth) for part in ids.split(self.settings.chunk_size)])

    def _chunk(self, ids: Tensor, depth: int) -> Tensor:
        nodes, step = 2**depth + 1, 2 * self.settings.bound / 2**depth
        indices = torch.stack((ids // nodes**2, ids // nodes % nodes, ids % nodes), dim=-1)
        self.num_queries += len(ids)
        # A node has the same coordinates, to the bit, in each grid that contains it: a power of two scales exactly.
        return self.field(indices.float() * step - self.settings.bound).float()


def _over_corners(nodes: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return a value for each cell `(n-1, n-1, n-1)` of a grid of nodes `(n, n, n)`: that of its eight corners, combined in pairs."""
    for axis in range(3):
        length = nodes.shape[axis] - 1
        nodes = combine(nodes.narrow(axis, 0, length), nodes.narrow(axis, 1, length))
    return nodes


def _any_corner(nodes: Bool[Tensor, "n n n"]) -> Bool[Tensor, "m m m"]:
    return _over_corners(nodes, torch.logical_or)


def _cells_near_surface(values: Tensor, known: Tensor, settings: ExtractionSettings, margin: int) -> Tensor:
    """Return which cells to refine: crossed, suspicious, or within `margin` cells of one that is crossed."""
    inside = values > settings.level
    crossed = _any_corner(inside) & _any_corner(~inside)
    if margin and crossed.any():
        kernel = 2 * margin + 1
        crossed = F.max_pool3d(crossed[None, None].float(), kernel, stride=1, padding=margin)[0, 0] > 0
    return crossed | _suspicious_cells(values, known, settings) if settings.slack else crossed


def _suspicious_cells(values: Tensor, known: Tensor, settings: ExtractionSettings) -> Tensor:
    """Return the evaluated cells whose corners are on average so close to the level that something thin may pass between them."""
    squared_slope = torch.zeros_like(values)
    for axis in range(3):
        length = values.shape[axis] - 1
        both_known = known.narrow(axis, 0, length) & known.narrow(axis, 1, length)
        step = values.diff(dim=axis).square() * both_known
        steepest = torch.zeros_like(values)
        for start in (0, 1):
            part = steepest.narrow(axis, start, length)
            torch.maximum(part, step, out=part)
        squared_slope += steepest
    distance = (values - settings.level).abs()
    mean_distance = _over_corners(distance, torch.add) / 8
    slope = _over_corners(squared_slope, torch.maximum).sqrt()
    return (mean_distance < settings.slack * slope) & ~_any_corner(~known)


def _refine(
    values: Tensor, known: Tensor, active: Tensor, sampler: _Sampler, depth: int
) -> tuple[Float[Tensor, "n n n"], Bool[Tensor, "n n n"]]:
    """Return values of the grid with half the spacing, evaluated in the active cells and wherever the surface leads.

    The rest is filled with the value of the cell's lowest corner. That keeps its sign, because a cell that stays inactive has
    eight corners of one sign.
    """
    parent = torch.arange(2**depth + 1, device=values.device) // 2
    values = values[parent][:, parent][:, :, parent].contiguous()
    fine_known = torch.zeros_like(values, dtype=torch.bool)
    fine_known[::2, ::2, ::2] = known
    while True:
        todo = (_nodes_of(active) & ~fine_known).view(-1).nonzero().squeeze(1)
        if not len(todo):
            return values, fine_known
        values.view(-1)[todo] = sampler.at(todo, depth)
        fine_known.view(-1)[todo] = True
        # Evaluated nodes on the faces of inactive cells tell where the surface leaves.
        inside = values > sampler.settings.level
        active = active | (_halved(inside, torch.logical_or) & ~_halved(inside, torch.logical_and))


def _nodes_of(cells: Bool[Tensor, "m m m"]) -> Bool[Tensor, "n n n"]:
    """Return the nodes of the grid of half the spacing that lie in the given cells or on their faces; n = 2 m + 1."""
    for axis in range(3):
        shape = list(cells.shape)
        shape[axis] = 2 * shape[axis] + 1
        nodes = cells.new_zeros(shape)
        for start in (0, 1, 2):
            nodes.narrow(axis, start, shape[axis] - 2).unfold(axis, 1, 2).squeeze(-1).logical_or_(cells)
        cells = nodes
    return cells


def _halved(nodes: Bool[Tensor, "n n n"], combine: Callable[[Tensor, Tensor], Tensor]) -> Bool[Tensor, "m m m"]:
    """Return a value for each cell of the grid of twice the spacing: those of its 27 nodes, combined; n = 2 m + 1."""
    for axis in range(3):
        low, middle, high = (
            nodes.narrow(axis, start, nodes.shape[axis] - 2).unfold(axis, 1, 2).squeeze(-1) for start in (0, 1, 2)
        )
        nodes = combine(combine(low, middle), high)
    return nodes
