"""The values of an occupancy field on a grid that is refined where the surface is.

Needs only a function of points, `(p, 3) -> (p,)`, positive inside; whose function it is does not matter.

Letters: `p` points, `n` nodes of the grid along an axis, `m` cells along an axis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.checked import Checked

#: From a cell's lowest corner to all eight, and to the 27 nodes of the grid of half the spacing.
_CORNERS, _BLOCK = (tuple(itertools.product(range(count), repeat=3)) for count in (2, 3))
#: Cells that are looked at together: this bounds the memory.
_CELLS_AT_ONCE = 1 << 18
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
        min_piece: Leave out detached pieces that enclose less than this share of what all enclose, and fill hollows that are smaller, before
            simplifying; the largest piece stays. 0 keeps every piece. It needs `is_closed`, as open surfaces enclose nothing.
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
    min_piece: float = 0.0
    max_faces: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("depth", 1), ("coarse_depth", 1), ("margin", 0), ("slack", 0), ("chunk_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.bound <= 0:
            raise ValueError(f"bound is {self.bound}, expected a positive number")
        if not 0 <= self.min_piece < 1:
            raise ValueError(f"min_piece is {self.min_piece}, expected 0 to below 1")
        if self.min_piece and not self.is_closed:
            raise ValueError(f"min_piece is {self.min_piece}, expected 0 where is_closed is False")
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


def _cells_near_surface(values: Tensor, known: Tensor, settings: ExtractionSettings, margin: int) -> Int[Tensor, "k 3"]:
    """Return the places of the cells to refine: crossed, suspicious, or within `margin` cells of one that is crossed.

    Only cells whose eight values are the field's own are looked at, which every crossed one's are.
    """
    crossed, suspicious = [], []
    slope = _squared_slope(values, known) if settings.slack else None
    for places in known[:-1, :-1, :-1].nonzero().split(_CELLS_AT_ONCE):
        corners = _flat(places, _CORNERS, known.shape[0])
        is_whole = known.view(-1)[corners].all(dim=1)
        places, corners = places[is_whole], corners[is_whole]
        distance = values.view(-1)[corners] - settings.level
        is_crossed = _is_mixed(distance > 0)
        crossed.append(places[is_crossed])
        if slope is not None:
            mean_distance = _over_corners(distance.abs(), torch.add) / 8
            steepest = _over_corners(slope.view(-1)[corners], torch.maximum).sqrt()
            suspicious.append(places[(mean_distance < settings.slack * steepest) & ~is_crossed])
    found = torch.cat(crossed)
    if not margin or not len(found):
        return torch.cat((found, *suspicious))
    near = torch.zeros([length - 1 for length in values.shape], device=values.device)
    for place in (found, *suspicious):
        near[place.unbind(1)] = 1
    crossings = torch.zeros_like(near)
    crossings[found.unbind(1)] = 1
    near += F.max_pool3d(crossings[None, None], 2 * margin + 1, stride=1, padding=margin)[0, 0]
    return near.nonzero()


def _squared_slope(values: Tensor, known: Tensor) -> Float[Tensor, "n n n"]:
    """Return at evaluated nodes the sum over the axes of the steepest squared step to an evaluated neighbor; elsewhere anything."""
    nodes, slope = values.shape[0], torch.empty_like(values)
    flat, is_known = values.view(-1), known.view(-1)
    for places in known.nonzero().split(_CELLS_AT_ONCE):
        ids = _flat(places, ((0, 0, 0),), nodes)[:, 0]
        here, total = flat[ids], torch.zeros(len(ids), dtype=values.dtype, device=values.device)
        for axis, stride in enumerate((nodes**2, nodes, 1)):
            steepest = torch.zeros_like(here)
            for sign, end in ((-1, 0), (1, nodes - 1)):
                # At the box's faces a node is its own neighbor.
                beside = torch.where(places[:, axis] == end, ids, ids + sign * stride)
                step = (flat[beside] - here).square() * is_known[beside]
                steepest = torch.maximum(steepest, step)
            total += steepest
        slope.view(-1)[ids] = total
    return slope


def _over_corners(corners: Float[Tensor, "k 8"], combine: Callable[[Tensor, Tensor], Tensor]) -> Float[Tensor, " k"]:
    """Return the values of the eight corners of each cell, combined in pairs."""
    values = corners.unflatten(1, (2, 2, 2))
    for _ in range(3):
        values = combine(values[:, 0], values[:, 1])
    return values


def _refine(
    values: Tensor, known: Tensor, active: Int[Tensor, "k 3"], sampler: _Sampler, depth: int
) -> tuple[Float[Tensor, "n n n"], Bool[Tensor, "n n n"]]:
    """Return values of the grid with half the spacing, evaluated in the active cells and wherever the surface leads.

    The rest is filled with the value of the cell's lowest corner. That keeps its sign, because a cell that stays inactive has
    eight corners of one sign. Beside the filling the work is that of the evaluated nodes.
    """
    nodes = 2**depth + 1
    values = _doubled(values)
    fine_known = torch.zeros_like(values, dtype=torch.bool)
    fine_known[::2, ::2, ::2] = known
    cells = values.shape[0] // 2
    is_active = torch.zeros(cells**3, dtype=torch.bool, device=values.device)
    while len(active):
        is_active[_flat(active, ((0, 0, 0),), cells)[:, 0]] = True
        marks = fine_known.view(-1)
        fresh = [_marked(_flat(2 * part, _BLOCK, nodes), marks) for part in active.split(_CELLS_AT_ONCE)]
        todo = torch.cat(fresh).sort().values
        if len(todo):
            values.view(-1)[todo] = sampler.at(todo, depth)
        active = _entered(values, active, is_active, sampler.settings.level)
    return values, fine_known


def _entered(values: Tensor, active: Tensor, is_active: Tensor, level: float) -> Int[Tensor, "k 3"]:
    """Return the inactive neighbors of active cells that the surface enters: evaluated nodes on their faces tell."""
    cells, nodes = values.shape[0] // 2, values.shape[0]
    is_seen, found = is_active.clone(), []
    for offset in _BLOCK:
        places = active + active.new_tensor(offset) - 1
        places = places[((places >= 0) & (places < cells)).all(dim=1)]
        ids = _flat(places, ((0, 0, 0),), cells)[:, 0]
        is_new = ~is_seen[ids]
        is_seen[ids[is_new]] = True
        for part in places[is_new].split(_CELLS_AT_ONCE):
            found.append(part[_is_mixed(values.view(-1)[_flat(2 * part, _BLOCK, nodes)] > level)])
    return torch.cat(found)


def _marked(ids: Int[Tensor, "k m"], marks: Bool[Tensor, " n"]) -> Int[Tensor, " p"]:
    """Return each id once that was not marked yet, and mark it; a column holds no id twice."""
    found = []
    for column in ids.unbind(1):
        fresh = column[~marks[column]]
        marks[fresh] = True
        found.append(fresh)
    return torch.cat(found)


def _doubled(values: Float[Tensor, "m m m"]) -> Float[Tensor, "n n n"]:
    """Return the grid of half the spacing, each node with the value of the node at or below it; n = 2 m - 1."""
    for axis in range(3):
        size = list(values.shape)
        size[axis] = 2 * size[axis] - 1
        fine = values.new_empty(size)
        for start, part in ((0, values), (1, values.narrow(axis, 0, values.shape[axis] - 1))):
            place = [slice(None)] * 3
            place[axis] = slice(start, None, 2)
            fine[tuple(place)] = part
        values = fine
    return values


def _flat(places: Int[Tensor, "k 3"], offsets: Sequence[tuple[int, ...]], length: int) -> Int[Tensor, "k m"]:
    """Return the flat indices, in a cube of `length` per axis, of every place moved by every offset."""
    strides = places.new_tensor([length**2, length, 1])
    return (places * strides).sum(dim=1)[:, None] + (places.new_tensor(offsets) * strides).sum(dim=1)


def _is_mixed(inside: Bool[Tensor, "k m"]) -> Bool[Tensor, " k"]:
    return inside.any(dim=1) & ~inside.all(dim=1)
