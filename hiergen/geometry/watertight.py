"""Closed surfaces from arbitrary triangles.

First the exact way of `hiergen.geometry.mesh_union`. Where that fails, the surface is thickened by a little more than a voxel, what
can be reached from outside is flooded, and the boundary of the rest is extracted and drawn back to the surface. A hole wider than
twice the thickness lets the flood in and leaves a thin shell; that is noticed by comparing with a coarser grid, which then serves
instead. Where the coarsest leaks as well, most rays from the flooded space still meet the surface: then small holes are closed, flat or
not, and a solid that cannot be closed is told in the notes.

Letters: `g` nodes of the grid along an axis, `p` points, `s` samples.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from hiergen.checked import Checked
from hiergen.geometry.mesh_union import cap_flat_holes, cap_small_holes, surface_consistency, unite_parts
from hiergen.geometry.poses import HALF_SIZE
from hiergen.geometry.ray_crossings import index_ranges, vertical_crossings

if TYPE_CHECKING:
    import trimesh
    from scipy.spatial import cKDTree

#: An exact result is accepted if at least this share of its surface separates inside from outside.
MIN_CONSISTENCY = 0.98
#: Share of what rays find inside that may be flooded before a solid counts as hollow.
MAX_HOLLOW = 0.02
#: Flooded nodes from which rays are sent, and of how many turned sets of axes. A point is enclosed if more than this share of its rays
#: end inside; of those from the space before a sheet, bent or not, about half do.
NUM_PROBES, NUM_TURNS, ENCLOSED_RAYS = 1024, 4, 0.7
#: Distance between samples of the surface, in voxels.
_SAMPLE_STEP = 0.5
#: Where the extracted surface comes to lie, in voxels before the true one: on solids, and on walls too thin to be solid.
_SOLID_OFFSET, _SHEET_OFFSET = 0.05, 0.5


@dataclasses.dataclass(frozen=True)
class WatertightSettings(Checked):
    """How surfaces are closed.

    Attributes:
        method: "auto" tries the exact way first, "voxels" always remeshes.
        resolutions: Resolutions of the grids to try, finest first; the coarsest tells what a leak is.
        thickness: Half the thickness of the shell, in voxels; holes up to twice this are closed.
        cap_holes: Close flat holes of any size first. Right for assets without the faces that nobody sees; it also fills an
            open vessel modeled as a single sheet.
        max_leak: Share of the coarsest grid's interior that a finer grid may lose before it counts as leaking.
    """

    method: Literal["auto", "voxels"] = "auto"
    resolutions: tuple[int, ...] = (256, 128, 64)
    thickness: float = 1.25
    cap_holes: bool = True
    max_leak: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in ("auto", "voxels"):
            raise ValueError(f"method is {self.method!r}, expected 'auto' or 'voxels'")
        if not self.resolutions or list(self.resolutions) != sorted(set(self.resolutions), reverse=True):
            raise ValueError(f"resolutions are {list(self.resolutions)}, expected decreasing numbers")
        if self.resolutions[-1] < 16 or self.thickness < 1 or not 0 <= self.max_leak <= 1:
            raise ValueError(
                f"the coarsest resolution is {self.resolutions[-1]}, thickness {self.thickness}, max_leak {self.max_leak}; "
                "expected at least 16, at least 1, and 0 to 1"
            )


@dataclasses.dataclass(frozen=True)
class Watertight:
    """A closed surface and how it came about.

    Attributes:
        mesh: Watertight mesh, oriented outward.
        method: How it was closed, "exact" or "voxels".
        notes: Number of capped holes, share of consistent surface; for voxels the resolution and those that leaked. `filled_holes`
            is the number of small holes that are not flat and were closed, since the solid was hollow without. `hollow` is the
            share of the solid that is missing, as its surface is too open to close: the result is a shell there.
    """

    mesh: trimesh.Trimesh
    method: str
    notes: dict[str, Any]


def make_watertight(
    mesh: trimesh.Trimesh, settings: WatertightSettings | None = None, *, rng: np.random.Generator | None = None
) -> Watertight:
    """Return the closed surface of what a normalized mesh encloses.

    Args:
        mesh: Triangles within [-0.95, 0.95]^3.
        settings: How; None takes the defaults.
        rng: Draws the points at which the result is checked; it never changes the result. None takes a fixed one.

    Raises:
        ValueError: If the mesh has no faces or leaves the cube.
    """
    settings = settings or WatertightSettings()
    rng = rng or np.random.default_rng(0)
    if not len(mesh.faces):
        raise ValueError("the mesh has no faces to close")
    reach = float(np.abs(mesh.vertices).max())
    if reach > HALF_SIZE * 1.001:
        raise ValueError(f"the mesh reaches to {reach:.4g}, expected at most {HALF_SIZE}; normalize it first")
    notes: dict[str, Any] = {}
    if settings.cap_holes:
        mesh, notes["capped_holes"] = cap_flat_holes(mesh)
    exact = _by_union(mesh, settings, notes, rng)
    if exact is not None:
        return exact
    shell = _coarsest_shell(mesh, settings)
    hollow = hollow_share(mesh, shell)
    if hollow > MAX_HOLLOW and settings.cap_holes:
        closed, number = cap_small_holes(mesh)
        if number:
            mesh, notes["filled_holes"] = closed, number
            exact = _by_union(mesh, settings, notes, rng)
            if exact is not None:
                return exact
            shell = _coarsest_shell(mesh, settings)
            hollow = hollow_share(mesh, shell)
    if hollow > MAX_HOLLOW:
        notes["hollow"] = round(hollow, 3)
    return _by_voxels(mesh, shell, settings, notes, rng)


def hollow_share(mesh: trimesh.Trimesh, shell: _Shell) -> float:
    """Return the share of what the surface encloses that the flood reached: 0 for a solid, about 1 for one that became a shell.

    A ray ends inside if it crosses the surface upward another number of times than downward: it does so wherever that number is
    odd, whatever the faces' orientation, and where closed parts overlap.
    """
    from scipy.spatial.transform import Rotation

    flooded = shell.points_of(~shell.enclosed)
    low, high = mesh.bounds
    flooded = flooded[((flooded > low) & (flooded < high)).all(axis=1)]
    if not len(flooded):
        return 0.0
    probes = flooded[np.linspace(0, len(flooded) - 1, min(NUM_PROBES, len(flooded))).astype(np.int64)]
    triangles = np.asarray(mesh.triangles, np.float64)
    votes = np.zeros(len(probes), np.int64)
    # Turned, as faces of real meshes and nodes of grids are aligned with the axes. Always the same turns: the result is.
    for turn in Rotation.random(NUM_TURNS, rng=np.random.default_rng(0)).as_matrix():
        for axis in range(3):
            turned = np.roll(turn, axis, axis=0)
            lines = probes @ turned.T
            found = vertical_crossings(triangles @ turned.T, lines[:, :2])
            is_above = found.height > lines[found.point, 2]
            for side in (is_above, ~is_above):
                votes += np.bincount(found.point[side], found.sign[side], len(probes)).astype(np.int64) != 0
    enclosed = float((votes > ENCLOSED_RAYS * 6 * NUM_TURNS).mean()) * len(flooded)
    return enclosed / (enclosed + int(shell.enclosed.sum()))


def _by_union(
    mesh: trimesh.Trimesh, settings: WatertightSettings, notes: dict[str, Any], rng: np.random.Generator
) -> Watertight | None:
    if settings.method == "auto":
        united = unite_parts(mesh)
        if united is not None:
            consistency = surface_consistency(united, rng=rng)
            if consistency >= MIN_CONSISTENCY:
                return Watertight(united, "exact", {**notes, "consistency": round(consistency, 4)})
    return None


def _coarsest_shell(mesh: trimesh.Trimesh, settings: WatertightSettings) -> _Shell:
    return _Shell(np.asarray(mesh.triangles, np.float64), settings.resolutions[-1], settings.thickness)


def _by_voxels(
    mesh: trimesh.Trimesh,
    reference: _Shell,
    settings: WatertightSettings,
    notes: dict[str, Any],
    rng: np.random.Generator,
) -> Watertight:
    """Return the remeshed surface from the finest grid that does not leak, judged by the coarsest, `reference`."""
    triangles = np.asarray(mesh.triangles, np.float64)
    coarsest = settings.resolutions[-1]
    interior = reference.points_of(reference.enclosed & (reference.distance > reference.thickness))
    leaks: dict[str, float] = {}
    for resolution in settings.resolutions:
        shell = reference if resolution == coarsest else _Shell(triangles, resolution, settings.thickness)
        lost = 1 - float(shell.enclosed[shell.nodes_at(interior)].mean()) if len(interior) else 0.0
        if lost <= settings.max_leak or resolution == coarsest:
            break
        leaks[str(resolution)] = round(lost, 3)
    result = shell.extract()
    notes = {**notes, "resolution": resolution, "consistency": round(surface_consistency(result, rng=rng), 4)}
    if leaks:
        notes["leaks"] = leaks
    return Watertight(result, "voxels", notes)


class _Shell:
    """A grid around the shape: distance to the surface where it is small, and what a flood from the corner does not reach.

    Attributes:
        distance: Distance of every node to the surface; infinite far from it.
        enclosed: Nodes that are within `thickness` of the surface, or cut off by such nodes.
    """

    distance: Float32[np.ndarray, "g g g"]
    enclosed: Bool[np.ndarray, "g g g"]

    def __init__(self, triangles: Float[np.ndarray, "f 3 3"], resolution: int, thickness: float) -> None:
        from scipy.ndimage import label, maximum_filter
        from scipy.spatial import cKDTree

        # The shell and a layer of free nodes around it must fit into the grid.
        half = HALF_SIZE / (1 - 2 * (thickness + 2) / (resolution - 1))
        self.voxel = 2 * half / (resolution - 1)
        self.origin = -half
        self.thickness = thickness * self.voxel
        self._triangles = triangles
        samples, self._sample_faces = lattice_samples(triangles, _SAMPLE_STEP * self.voxel)
        self._tree: cKDTree = cKDTree(samples)
        near = np.zeros((resolution,) * 3, np.uint8)
        near[tuple(self._node(samples).T)] = 1
        near = maximum_filter(near, size=2 * int(np.ceil(thickness + 1)) + 1)
        band = np.argwhere(near)
        self.distance = np.full(near.shape, np.inf, np.float32)
        self.distance[tuple(band.T)] = self.closest(self.origin + band * self.voxel)[1]
        free, _ = label(self.distance > self.thickness)
        self.enclosed = free != free[0, 0, 0]

    def _node(self, points: np.ndarray) -> np.ndarray:
        shape = round(-2 * self.origin / self.voxel)
        return np.clip(np.rint((points - self.origin) / self.voxel), 0, shape).astype(np.int64)

    def nodes_at(self, points: Float[np.ndarray, "p 3"]) -> tuple[Int64[np.ndarray, " p"], ...]:
        """Return the index of the node nearest to each point, for indexing a grid."""
        return tuple(self._node(points).T)

    def points_of(self, mask: Bool[np.ndarray, "g g g"]) -> Float[np.ndarray, "p 3"]:
        """Return the positions of the chosen nodes."""
        return self.origin + np.argwhere(mask) * self.voxel

    def closest(self, points: Float[np.ndarray, "p 3"]) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, " p"]]:
        """Return the closest point of the face that holds the nearest sample, and its distance.

        Beyond a few voxels' distance nothing is looked up exactly, and nothing needs it.
        """
        nearest = self._sample_faces[self._tree.query(points)[1]]
        found = closest_on_triangles(self._triangles[nearest], points)
        return found, np.linalg.norm(found - points, axis=1)

    def extract(self) -> trimesh.Trimesh:
        """Return the boundary of what is enclosed, drawn back from the shell's outside to the surface."""
        import trimesh
        from skimage.measure import marching_cubes

        level = np.minimum(self.distance, 2 * self.thickness) - self.thickness
        # Behind the shell the distance grows again; there the sign counts and nothing else.
        field = np.where(self.enclosed, np.minimum(level, -1e-3 * self.voxel), level).astype(np.float32)
        field[self.enclosed & (self.distance > self.thickness)] = -self.voxel
        vertices, faces, _, _ = marching_cubes(field, 0.0)
        vertices = self.origin + vertices.astype(np.float64) * self.voxel
        target, distance = self.closest(vertices)
        outward = (vertices - target) / np.maximum(distance, 1e-12)[:, None]
        # A wall through which a probe comes out at the other side is a sheet: drawn back in full it would have no volume.
        is_sheet = ~self.enclosed[self.nodes_at(target - 1.5 * self.thickness * outward)]
        offset = np.where(is_sheet, _SHEET_OFFSET, _SOLID_OFFSET) * self.voxel
        moved = target + np.minimum(offset, distance)[:, None] * outward
        mesh = trimesh.Trimesh(moved, faces, process=False)
        if mesh.volume < 0:
            mesh.invert()
        return mesh


def lattice_samples(
    triangles: Float[np.ndarray, "f 3 3"], step: float
) -> tuple[Float[np.ndarray, "s 3"], Int64[np.ndarray, " s"]]:
    """Return points such that none of the surface is farther than `step` from one, and the face of each.

    Rows parallel to the longest edge, so that long thin faces get few.
    """
    edges = np.roll(triangles, -1, axis=1) - triangles
    first = np.linalg.norm(edges, axis=2).argmax(axis=1)
    corner = np.take_along_axis(triangles, ((first[:, None] + np.arange(3)) % 3)[:, :, None], axis=1)
    a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
    length = np.linalg.norm(b - a, axis=1)
    height = np.linalg.norm(np.cross(b - a, c - a), axis=1) / np.maximum(length, 1e-300)
    num_rows = np.ceil(height / step).astype(np.int64)
    face, row = index_ranges(np.zeros(len(triangles), np.int64), num_rows + 1)
    along = row / np.maximum(num_rows[face], 1)
    num_columns = np.ceil(length[face] * (1 - along) / step).astype(np.int64)
    line, column = index_ranges(np.zeros(len(face), np.int64), num_columns + 1)
    across = (column / np.maximum(num_columns[line], 1))[:, None]
    up, face = along[line][:, None], face[line]
    start = a[face] + (c[face] - a[face]) * up
    end = b[face] + (c[face] - b[face]) * up
    return start + (end - start) * across, face


def closest_on_triangles(
    triangles: Float[np.ndarray, "p 3 3"], points: Float[np.ndarray, "p 3"]
) -> Float[np.ndarray, "p 3"]:
    """Return for each point the closest point of the triangle of the same index."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    square = (normal * normal).sum(axis=1, keepdims=True)
    flat = points - normal * (((points - a) * normal).sum(axis=1, keepdims=True) / np.maximum(square, 1e-300))
    inside = np.ones(len(points), bool)
    best, best_distance = a.copy(), np.full(len(points), np.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        edge = end - start
        inside &= (np.cross(edge, flat - start) * normal).sum(axis=1) >= 0
        share = ((points - start) * edge).sum(axis=1) / np.maximum((edge * edge).sum(axis=1), 1e-300)
        candidate = start + edge * np.clip(share, 0, 1)[:, None]
        distance = np.linalg.norm(points - candidate, axis=1)
        closer = distance < best_distance
        best[closer], best_distance[closer] = candidate[closer], distance[closer]
    use_plane = inside & (square[:, 0] > 0)
    best[use_plane] = flat[use_plane]
    return best
