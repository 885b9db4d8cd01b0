"""Cutting polygons into triangles: flat or not, convex or not, without holes and without overlaps.

Every triangulation uses all corners, those on straight sides too, so that faces on both sides of an edge keep sharing it.

Letters: `v` vertices, `c` corners of all polygons, `n` polygons, `t` triangles, `k` corners of a polygon.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from hiergen.environment import require
from hiergen.geometry.formats.polygons import Refused

#: Corners closer than this share of the mesh's size to the line between their neighbors lie on it.
FLATNESS = 4e-9
#: Corners of a polygon that is not convex. One without any order takes a second for ten thousand, a minute for fifty thousand.
MAX_CORNERS = 10_000


def triangulate(
    vertices: Float64[np.ndarray, "v 3"], corners: Int64[np.ndarray, " c"], sizes: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, "t 3"]:
    """Return the triangles of polygons of at least three corners each: those with fewer corners first.

    Raises:
        Refused: If a polygon that is not convex has more than `MAX_CORNERS` corners.
    """
    begin = np.cumsum(sizes) - sizes
    tolerance = FLATNESS * float(np.ptp(vertices[corners], axis=0).max())
    parts = []
    for size in np.unique(sizes).tolist():
        polygons = corners[begin[sizes == size][:, None] + np.arange(size)]
        parts.append(polygons if size == 3 else _cut(vertices[polygons], polygons, tolerance))
    return np.concatenate(parts)


def _cut(
    points: Float[np.ndarray, "n k 3"], polygons: Int64[np.ndarray, "n k"], tolerance: float
) -> Int64[np.ndarray, "t 3"]:
    flat = _projected(points)
    height, turn = _corner_heights(flat)
    # All corners turn left, and once around in sum: more often is a star.
    is_convex = (height > tolerance).all(axis=1) & (turn.sum(axis=1) < 3 * np.pi)
    size = polygons.shape[1]
    fan = np.array([(0, 1, 2), (2, 3, 0)] if size == 4 else [(0, k, k + 1) for k in range(1, size - 1)])
    parts = [polygons[is_convex][:, corner] for corner in fan]
    rest = np.flatnonzero(~is_convex)
    if len(rest) and size > MAX_CORNERS:
        raise Refused(f"has a polygon of {size:,} corners that is not convex, at most {MAX_CORNERS:,} are read")
    on_side = (np.abs(height) <= tolerance) & (np.abs(turn) < np.pi / 2)
    for number in rest.tolist():
        parts.append(polygons[number][_clip_ears(flat[number], on_side[number])])
    return np.concatenate(parts)


def _projected(points: Float[np.ndarray, "n k 3"]) -> Float64[np.ndarray, "n k 2"]:
    """Return polygons in the plane of their vector area (Newell's normal), counter-clockwise."""
    centered = points - points[:, :1]
    following = np.roll(centered, -1, axis=1)
    normal = np.cross(centered, following).sum(axis=1)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal = np.where(length > 0, normal / np.maximum(length, 1e-300), [0.0, 0.0, 1.0])
    helper = np.eye(3)[np.abs(normal).argmin(axis=1)]
    first = np.cross(normal, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(normal, first)
    return np.einsum("nkc,dnc->nkd", centered, np.stack([first, second]))


def _corner_heights(
    flat: Float64[np.ndarray, "n k 2"],
) -> tuple[Float64[np.ndarray, "n k"], Float64[np.ndarray, "n k"]]:
    """Return each corner's distance from the line through its neighbors, positive where it is convex, and the angle of its turn."""
    before, after = flat - np.roll(flat, 1, axis=1), np.roll(flat, -1, axis=1) - flat
    cross = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    chord = np.linalg.norm(before + after, axis=2)
    return cross / np.maximum(chord, 1e-300), np.arctan2(cross, (before * after).sum(axis=2))


def _clip_ears(flat: Float64[np.ndarray, "k 2"], on_side: Bool[np.ndarray, " k"]) -> Int64[np.ndarray, "t 3"]:
    """Return the triangles of one polygon as indices of its corners."""
    manifold3d = require("manifold3d", "shapes", "cutting concave polygons")
    kept = np.flatnonzero(~on_side)
    if len(kept) < 3:
        kept = np.arange(len(flat))
    scale = float(np.abs(flat).max()) or 1.0
    triangles = kept[np.asarray(manifold3d.triangulate([flat[kept] / scale]), np.int64)]
    # Corners on a straight side were left out, as ears there would be empty; each is put back into the triangle at its side.
    for start, end in zip(kept.tolist(), np.roll(kept, -1).tolist(), strict=True):
        inner = np.arange(start + 1, end if end > start else end + len(flat)) % len(flat)
        if len(inner):
            triangles = _split_at(triangles, start, end, inner)
    return triangles


def _split_at(triangles: np.ndarray, start: int, end: int, inner: np.ndarray) -> np.ndarray:
    for place in range(3):
        found = np.flatnonzero((triangles[:, place] == start) & (triangles[:, (place + 1) % 3] == end))
        if len(found):
            tip = triangles[found[0], (place + 2) % 3]
            chain = np.concatenate([[start], inner, [end]])
            pieces = np.stack([chain[:-1], chain[1:], np.full(len(chain) - 1, tip)], axis=1)
            return np.concatenate([np.delete(triangles, found[0], axis=0), pieces])
    return triangles
