"""Solids as sequences of convex parts, added or cut: exact inside tests, and meshes of the same solid.

Every part is a convex polyhedron, so that a point is inside it iff it is behind all of its planes. The mesh of a solid is made of
these very planes, hence labels and surface agree to rounding.

Letters: `v` vertices, `p` points.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

if TYPE_CHECKING:
    import trimesh

Number = float | int
Point = Sequence[Number]

#: Bodies below this share of a solid's volume are artefacts of rounding.
MIN_BODY_VOLUME = 1e-9


@dataclasses.dataclass(frozen=True)
class ConvexPart:
    """A convex polyhedron, added to the solid so far or cut out of it.

    Attributes:
        vertices: Corners of the polyhedron.
        planes: Outward unit normals and offsets: a point x is inside iff `planes[:, :3] @ x + planes[:, 3] <= 0` everywhere.
        is_cut: Whether the part is taken away.
    """

    vertices: Float[np.ndarray, "v 3"]
    planes: Float[np.ndarray, "f 4"]
    is_cut: bool = False

    @classmethod
    def hull(cls, points: Any, *, is_cut: bool = False) -> ConvexPart:
        """Return the convex hull of points `(n, 3)`."""
        from scipy.spatial import ConvexHull

        points = np.asarray(points, np.float64)
        hull = ConvexHull(points)
        # Triangles of one flat face repeat its plane.
        planes = hull.equations[np.unique(hull.equations.round(9), axis=0, return_index=True)[1]]
        return cls(points[hull.vertices], planes, is_cut)

    def moved(self, *, scale: Number = 1.0, shift: Any = 0.0) -> ConvexPart:
        """Return the part scaled about the origin, then shifted."""
        shift = np.broadcast_to(np.asarray(shift, np.float64), (3,))
        offsets = self.planes[:, 3] * scale - self.planes[:, :3] @ shift
        planes = np.concatenate([self.planes[:, :3], offsets[:, None]], axis=1)
        return ConvexPart(self.vertices * scale + shift, planes, self.is_cut)

    def cut(self) -> ConvexPart:
        """Return the same part, to be taken away."""
        return dataclasses.replace(self, is_cut=True)

    def field(self, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, " p"]:
        """Return the largest signed distance to a plane: negative inside, zero on the surface."""
        return (points @ self.planes[:, :3].T + self.planes[:, 3]).max(axis=1)


@dataclasses.dataclass(frozen=True)
class ConvexSolid:
    """Convex parts, applied in order: `((a + b) - c) + d` is four parts of which the third is cut."""

    parts: tuple[ConvexPart, ...]

    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """Return the box around the added parts."""
        vertices = np.concatenate([part.vertices for part in self.parts if not part.is_cut])
        return np.stack([vertices.min(axis=0), vertices.max(axis=0)])

    def normalized(self, half_size: float) -> ConvexSolid:
        """Return the solid with the center of its box at the origin and the longest side `2 * half_size`."""
        low, high = self.bounds()
        scale = 2 * half_size / float((high - low).max())
        shift = -(low + high) / 2 * scale
        return ConvexSolid(tuple(part.moved(scale=scale, shift=shift) for part in self.parts))

    def contains(self, points: Float[np.ndarray, "p 3"]) -> Bool[np.ndarray, " p"]:
        """Return which points are inside, exactly."""
        points = points.astype(np.float64, copy=False)
        inside = np.zeros(len(points), bool)
        for part in self.parts:
            low, high = part.vertices.min(axis=0), part.vertices.max(axis=0)
            near = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
            hit = near[part.field(points[near]) <= 0] if len(near) else near
            inside[hit] = not part.is_cut
        return inside

    def field(self, points: Float[np.ndarray, "p 3"]) -> Float[np.ndarray, " p"]:
        """Return a function that is negative inside and positive outside; a distance only near single faces."""
        value = np.full(len(points), np.inf)
        for part in self.parts:
            own = part.field(points)
            value = np.maximum(value, -own) if part.is_cut else np.minimum(value, own)
        return value

    def to_mesh(self) -> trimesh.Trimesh:
        """Return the watertight surface: exact by manifold3d's booleans where that is installed, else by `to_grid_mesh`."""
        if importlib.util.find_spec("manifold3d") is None:
            return self.to_grid_mesh()
        import manifold3d
        import trimesh

        solid = manifold3d.Manifold()
        for is_cut, group in _runs(self.parts):
            hulls = [manifold3d.Manifold.hull_points(part.vertices) for part in group]
            kind = manifold3d.OpType.Subtract if is_cut else manifold3d.OpType.Add
            solid = manifold3d.Manifold.batch_boolean([solid, *hulls], kind)
        # Faces that two parts share exactly may leave closed slivers of no volume behind.
        real = [body for body in solid.decompose() if abs(body.volume()) > MIN_BODY_VOLUME * solid.volume()]
        mesh = manifold3d.Manifold.compose(real).to_mesh64()
        return trimesh.Trimesh(np.asarray(mesh.vert_properties)[:, :3], np.asarray(mesh.tri_verts), process=False)

    def to_grid_mesh(self, resolution: int = 128) -> trimesh.Trimesh:
        """Return the surface by marching cubes: watertight, edges cut off by up to a cell of 1 / resolution of the longest side."""
        import trimesh
        from skimage.measure import marching_cubes

        low, high = self.bounds()
        cell = float((high - low).max()) / resolution
        counts = np.ceil((high - low) / cell).astype(int) + 5
        axes = [low[i] - 2.13 * cell + cell * np.arange(counts[i]) for i in range(3)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = self.field(grid.reshape(-1, 3)).reshape(grid.shape[:3])
        vertices, faces, _, _ = marching_cubes(values, 0.0)
        origin = np.array([axis[0] for axis in axes])
        mesh = trimesh.Trimesh(origin + vertices.astype(np.float64) * cell, faces[:, ::-1], process=True)
        if mesh.volume < 0:
            mesh.invert()
        return mesh


def box(size: Point, center: Point = (0.0, 0.0, 0.0)) -> ConvexPart:
    """Return an axis-aligned box."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return ConvexPart.hull(np.asarray(center) + signs * (np.asarray(size) / 2))


def frustum(
    start: Point, end: Point, radius: Number, end_radius: Number | None = None, *, sides: int = 24
) -> ConvexPart:
    """Return a cone frustum (a cylinder if the radii agree) with regular polygons of `sides` corners around both ends."""
    start_, end_ = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (end_ - start_) / np.linalg.norm(end_ - start_)
    helper = np.eye(3)[np.abs(axis).argmin()]
    first = np.cross(axis, helper)
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    # Half a step off, so that four sides make a square aligned with the axes.
    angle = (np.arange(sides) + 0.5) * (2 * math.pi / sides)
    ring = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
    far = radius if end_radius is None else end_radius
    return ConvexPart.hull(np.concatenate([start_ + ring * radius, end_ + ring * far]))


def ellipsoid(center: Point, radii: Point, *, rings: int = 9, sides: int = 18) -> ConvexPart:
    """Return a faceted ellipsoid with its poles on the y axis."""
    polar = np.linspace(0, math.pi, rings + 2)[1:-1]
    around = np.arange(sides) * (2 * math.pi / sides)
    grid = [[math.sin(a) * math.cos(b), math.cos(a), math.sin(a) * math.sin(b)] for a in polar for b in around]
    unit = np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], *grid])
    return ConvexPart.hull(np.asarray(center) + unit * np.asarray(radii))


def lathe(profile: Sequence[tuple[Number, Number]], *, sides: int = 24) -> list[ConvexPart]:
    """Return the solid of revolution about the y axis through `(radius, height)` pairs of increasing height, as frusta."""
    pairs = itertools.pairwise(profile)
    return [frustum((0, low, 0), (0, high, 0), near, far, sides=sides) for (near, low), (far, high) in pairs]


def sweep(path: Any, radius: Number, *, sides: int = 8) -> list[ConvexPart]:
    """Return a tube along the points `(n, 3)` of a path in the plane z = const: one convex piece between consecutive points."""
    path = np.asarray(path, np.float64)
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    up = np.array([0.0, 0.0, 1.0])
    side = np.cross(up, tangent)
    angle = (np.arange(sides) + 0.5) * (2 * math.pi / sides)
    ring = np.cos(angle)[None, :, None] * side[:, None] + np.sin(angle)[None, :, None] * up
    rings = path[:, None] + radius * ring
    return [ConvexPart.hull(np.concatenate([a, b])) for a, b in itertools.pairwise(rings)]


def _runs(parts: Iterable[ConvexPart]) -> list[tuple[bool, list[ConvexPart]]]:
    runs: list[tuple[bool, list[ConvexPart]]] = []
    for part in parts:
        if not runs or runs[-1][0] != part.is_cut:
            runs.append((part.is_cut, []))
        runs[-1][1].append(part)
    return runs
