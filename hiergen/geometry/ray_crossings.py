"""Where lines parallel to an axis cross triangles: one exact routine under occupancy labels, voxel grids and renders.

Everything here is numpy in float64 and needs no ray-tracing library. Two triangles that share an edge decide by the very same
number on which side of it a line passes, so that a closed surface is crossed consistently: no line slips between faces.

Letters: `f` faces, `p` points, `k` crossings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int64

#: Pairs of (triangle, point) tested at once; bounds the memory at about 200 bytes per pair.
MAX_PAIRS = 1_000_000
#: Points for each cell of the grid that finds candidates.
POINTS_PER_CELL = 4

# A fixed linear map of positive determinant (here close to a rotation) without any special angle: faces of real meshes are
# aligned with the axes, and lines through edges or along faces are the only hard cases of a crossing test.
_GENERIC_MAP = np.array(
    [
        [0.8138876, -0.4698463, 0.3418741],
        [0.5438381, 0.8231729, -0.1633759],
        [-0.2046565, 0.3188937, 0.9254280],
    ]
)


@dataclasses.dataclass(frozen=True)
class Crossings:
    """Crossings of vertical lines with triangles, in no particular order.

    Attributes:
        point: Index of the line.
        face: Index of the triangle.
        height: Third coordinate of the crossing.
        sign: +1 where the triangle, seen from above, is counter-clockwise (its normal points up), else -1.
        weights: Barycentric coordinates of the crossing in the plane of the first two coordinates.
    """

    point: Int64[np.ndarray, " k"]
    face: Int64[np.ndarray, " k"]
    height: Float[np.ndarray, " k"]
    sign: Int64[np.ndarray, " k"]
    weights: Float[np.ndarray, "k 3"]


def vertical_crossings(triangles: Float[np.ndarray, "f 3 3"], points: Float[np.ndarray, "p 2"]) -> Crossings:
    """Return where the vertical lines through `points` cross `triangles`.

    A line through an edge that two triangles share crosses exactly one of them, if they lie on different sides of it.
    """
    triangles = triangles.astype(np.float64, copy=False)
    points = points.astype(np.float64, copy=False)
    boxes = triangles[:, :, :2].min(axis=1), triangles[:, :, :2].max(axis=1)
    parts = [_test_pairs(triangles, boxes, points, *pairs) for pairs in _candidates(boxes, points)]
    fields = [field.name for field in dataclasses.fields(Crossings)]
    if not parts:
        none = np.zeros(0, np.int64)
        return Crossings(none, none, np.zeros(0), none, np.zeros((0, 3)))
    return Crossings(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def winding_numbers(triangles: Float[np.ndarray, "f 3 3"], points: Float[np.ndarray, "p 3"]) -> Int64[np.ndarray, " p"]:
    """Return how often the surface winds around each point: 1 inside one closed part, 2 inside two, 0 outside.

    Exact for closed surfaces whose faces are oriented outward, overlapping or not. For open surfaces it is the number that one
    fixed direction sees, and means little.
    """
    mapped = triangles.astype(np.float64) @ _GENERIC_MAP.T
    lines = points.astype(np.float64) @ _GENERIC_MAP.T
    crossings = vertical_crossings(mapped, lines[:, :2])
    above = crossings.height > lines[crossings.point, 2]
    return _sum_at(crossings.point[above], crossings.sign[above], len(points))


def contains(triangles: Float[np.ndarray, "f 3 3"], points: Float[np.ndarray, "p 3"]) -> Bool[np.ndarray, " p"]:
    """Return which points lie inside the closed, outward-oriented surface `triangles` (winding number at least 1)."""
    return winding_numbers(triangles, points) >= 1


def occupancy_grid(
    triangles: Float[np.ndarray, "f 3 3"], resolution: int, *, extent: float = 1.0
) -> Bool[np.ndarray, "r r r"]:
    """Return which cell centers of a regular grid over [-extent, extent]^3 lie inside a closed surface.

    Index order is x, y, z. There is one line per column of cells, so the cost is that of `resolution ** 2` points.
    """
    if resolution < 1:
        raise ValueError(f"resolution is {resolution}, expected at least 1")
    # Cell centers are special positions for meshes with round coordinates; a shift of a billionth makes them generic.
    axis = (np.arange(resolution) + 0.5) * (2 * extent / resolution) - extent + 1e-9
    columns = np.stack(np.meshgrid(axis, axis + 1e-9, indexing="ij"), axis=-1).reshape(-1, 2)
    crossings = vertical_crossings(triangles, columns)
    # The first cell center above a crossing: from there on the column has left (or entered) the surface.
    cell = np.searchsorted(axis, crossings.height)
    change = np.zeros((resolution * resolution, resolution + 1), np.int64)
    np.add.at(change, (crossings.point, cell), -crossings.sign)
    winding = change.cumsum(axis=1)[:, :resolution]
    return (winding >= 1).reshape(resolution, resolution, resolution)


def index_ranges(
    begin: Int64[np.ndarray, " r"], end: Int64[np.ndarray, " r"]
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Return for all integers of the ranges [begin, end), one range after the other, the range and the integer."""
    length = end - begin
    owner = np.repeat(np.arange(len(begin)), length)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
    return owner, begin[owner] + offset


def _sum_at(index: np.ndarray, value: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(index, weights=value, minlength=size).astype(np.int64)


def _candidates(boxes: tuple[np.ndarray, np.ndarray], points: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (face, point) pairs whose bounding boxes agree.

    Points are sorted by the cells of a grid, row by row; then those that a triangle may cover in one row of cells are contiguous.
    """
    flat_low, flat_high = boxes
    if not len(points) or not len(flat_low):
        return
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(1, int(np.sqrt(len(points) / POINTS_PER_CELL)))
    step = np.maximum((high - low) / side, np.finfo(np.float64).tiny)

    def cell(position: np.ndarray) -> np.ndarray:
        return np.clip(np.floor((position - low) / step), 0, side - 1).astype(np.int64)

    cells = cell(points)
    key = cells[:, 1] * side + cells[:, 0]
    order = np.argsort(key, kind="stable")
    starts = np.searchsorted(key[order], np.arange(side * side + 1))

    touched = np.flatnonzero(((flat_high >= low) & (flat_low <= high)).all(axis=1))
    first, last = cell(flat_low[touched]), cell(flat_high[touched])
    row_face, row = index_ranges(first[:, 1], last[:, 1] + 1)
    begin = starts[row * side + first[row_face, 0]]
    end = starts[row * side + last[row_face, 0] + 1]
    used = end > begin
    face, begin, end = touched[row_face[used]], begin[used], end[used]
    total = np.cumsum(end - begin)
    cut = 0
    while cut < len(face):
        done = total[cut - 1] if cut else 0
        stop = max(cut + 1, int(np.searchsorted(total, done + MAX_PAIRS, side="right")))
        owner, position = index_ranges(begin[cut:stop], end[cut:stop])
        yield face[cut:stop][owner], order[position]
        cut = stop


def _test_pairs(
    triangles: np.ndarray, boxes: tuple[np.ndarray, np.ndarray], points: np.ndarray, face: np.ndarray, point: np.ndarray
) -> Crossings:
    # A bounding box test first: most candidates end here, and it is far cheaper than three edge functions.
    x, y = points[point, 0], points[point, 1]
    low, high = boxes
    near = (x >= low[face, 0]) & (x <= high[face, 0]) & (y >= low[face, 1]) & (y <= high[face, 1])
    face, point = face[near], point[near]
    corner = triangles[face]
    position = points[point]
    edges = [_edge(corner[:, i, :2], corner[:, j, :2], position) for i, j in ((1, 2), (2, 0), (0, 1))]
    positive = [side for _, side in edges]
    inside = (positive[0] == positive[1]) & (positive[1] == positive[2])
    values = np.stack([value for value, _ in edges], axis=1)[inside]
    area = values.sum(axis=1)
    solid = area != 0
    chosen = np.flatnonzero(inside)[solid]
    weights = values[solid] / area[solid, None]
    height = (weights * corner[chosen, :, 2]).sum(axis=1)
    sign = np.where(positive[0][chosen], 1, -1).astype(np.int64)
    return Crossings(point[chosen], face[chosen], height, sign, weights)


def _edge(start: np.ndarray, end: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return twice the signed area of (start, end, position) and whether it counts as positive.

    Computed with the two ends in a fixed order and negated if that swaps them, so that the neighbor across the edge sees exactly
    the opposite number; zero counts as positive in the fixed order.
    """
    swap = (start[:, 0] > end[:, 0]) | ((start[:, 0] == end[:, 0]) & (start[:, 1] > end[:, 1]))
    a = np.where(swap[:, None], end, start)
    b = np.where(swap[:, None], start, end)
    value = (b[:, 0] - a[:, 0]) * (position[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (position[:, 0] - a[:, 0])
    return np.where(swap, -value, value), (value >= 0) ^ swap
