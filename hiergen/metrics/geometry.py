"""How far one shape is from another: Chamfer distance, F-score, normal consistency, volume IoU.

Figures of this field are only comparable under one protocol, and papers rarely state theirs. Here every result carries its own and
prints it.

Letters: `n m` points of two clouds, `t u` triangles of two surfaces.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from hiergen.checked import Checked
from hiergen.geometry.meshes import require_shape_libraries
from hiergen.geometry.poses import apply_transform, fit_transform, yaw_rotation
from hiergen.geometry.ray_crossings import occupancy_grid
from hiergen.geometry.surface_sampling import sample_surface

if TYPE_CHECKING:
    import trimesh

#: Points on which alignments are searched, candidates that are refined, and steps of the refinement.
_ALIGN_POINTS, _ALIGN_CANDIDATES, _ALIGN_STEPS = 2000, 3, 20


@dataclasses.dataclass(frozen=True)
class GeometryProtocol(Checked):
    """Under what conditions two shapes are compared.

    Attributes:
        num_points: Number of points on each surface, uniform by area.
        thresholds: Distances at which a point counts as found, for the F-score, in the normalized unit.
        resolution: Number of cells along each axis of the grid for volume IoU; 0 leaves it out.
        normalize: "each" brings both boxes to center 0 and longest side 2; "reference" applies the reference's transform to
            both; "none" compares as given.
        num_yaws: Number of turns about the y axis, the best of which, refined by rigid ICP, gives a second result; 0 leaves it out.
        seed: Seed of the points.

    Source:
        MAR-3D (arXiv:2503.20519) reports these measures without stating thresholds, scale or alignment: its figures cannot be
        compared with these.
    """

    num_points: int = 100_000
    thresholds: tuple[float, ...] = (0.02, 0.05)
    resolution: int = 64
    normalize: Literal["each", "reference", "none"] = "each"
    num_yaws: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_points < 1 or self.resolution < 0 or self.num_yaws < 0:
            raise ValueError(
                f"num_points is {self.num_points}, resolution {self.resolution}, num_yaws {self.num_yaws}; "
                "expected at least 1, 0 and 0"
            )
        if not self.thresholds or min(self.thresholds) <= 0:
            raise ValueError(f"thresholds are {self.thresholds}, expected positive distances")
        if self.normalize not in ("each", "reference", "none"):
            raise ValueError(f"normalize is {self.normalize!r}, expected 'each', 'reference' or 'none'")

    def __str__(self) -> str:
        scale = {
            "each": "both boxes at center 0 and longest side 2",
            "reference": "reference box at center 0 and longest side 2, the other with it",
            "none": "shapes as given",
        }[self.normalize]
        parts = [
            scale,
            f"{self.num_points:,} points uniform by area, seed {self.seed}",
            "CD = mean of the two mean distances, not squared",
            "F at " + " and ".join(f"{value:g}" for value in self.thresholds),
            "NC = mean |cos| of nearest neighbors' normals, both ways",
        ]
        if self.resolution:
            parts.append(f"IoU of {self.resolution}^3 cells")
        parts.append(f"aligned = best of {self.num_yaws} yaws and ICP" if self.num_yaws else "no alignment")
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True)
class ShapeSetProtocol(Checked):
    """Under what conditions two sets of shapes are compared.

    Attributes:
        num_points: Number of points on each surface, uniform by area.
        normalize: Whether every box is brought to center 0 and longest side 2.
        seed: Seed of the points.
    """

    num_points: int = 2048
    normalize: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_points < 1:
            raise ValueError(f"num_points is {self.num_points}, expected at least 1")

    def __str__(self) -> str:
        scale = "every box at center 0 and longest side 2" if self.normalize else "shapes as given"
        return (
            f"{scale}; {self.num_points:,} points uniform by area, seed {self.seed}; "
            "distance = CD, mean of the two mean distances, not squared"
        )


@dataclasses.dataclass(frozen=True)
class GeometryScores:
    """How well a shape agrees with its reference.

    Attributes:
        chamfer: Mean of the two mean nearest-neighbor distances; 0 is best.
        f_scores: Harmonic mean of precision and recall at each threshold, in [0, 1].
        normal_consistency: Mean |cosine| of the normals of nearest neighbors, in [0, 1].
        volume_iou: Intersection over union, in [0, 1]; None where a mesh is not watertight or the protocol leaves it out.
        protocol: How all of it was measured.
        aligned: Scores after alignment, if the protocol asks for it.
    """

    chamfer: float
    f_scores: tuple[float, ...]
    normal_consistency: float
    volume_iou: float | None
    protocol: GeometryProtocol
    aligned: GeometryScores | None = None

    def __str__(self) -> str:
        lines = [self._figures()]
        if self.aligned is not None:
            lines.append(f"aligned: {self.aligned._figures()}")
        return "\n".join([*lines, f"[{self.protocol}]"])

    def _figures(self) -> str:
        f_scores = ", ".join(
            f"F@{threshold:g} {value:.4f}"
            for threshold, value in zip(self.protocol.thresholds, self.f_scores, strict=True)
        )
        iou = "n/a" if self.volume_iou is None else f"{self.volume_iou:.4f}"
        return f"CD {self.chamfer:.5f}, {f_scores}, NC {self.normal_consistency:.4f}, IoU {iou}"


def compare_meshes(
    mesh: trimesh.Trimesh, reference: trimesh.Trimesh, protocol: GeometryProtocol | None = None
) -> GeometryScores:
    """Return how well a mesh agrees with a reference; the result prints with its protocol.

    Raises:
        ValueError: If a mesh has no faces or no area.
        ImportError: If trimesh or scipy is not installed.
    """
    require_shape_libraries()
    protocol = protocol or GeometryProtocol()
    triangles = [_triangles("mesh", mesh), _triangles("reference", reference)]
    if protocol.normalize != "none":
        target = fit_transform(triangles[1].reshape(-1, 3), np.eye(3), half_size=1.0)
        own = fit_transform(triangles[0].reshape(-1, 3), np.eye(3), half_size=1.0)
        matrices = [target if protocol.normalize == "reference" else own, target]
        triangles = [_moved(matrix, part) for matrix, part in zip(matrices, triangles, strict=True)]
    is_closed = bool(mesh.is_watertight and reference.is_watertight)
    scores = _score(triangles[0], triangles[1], is_closed, protocol)
    if not protocol.num_yaws:
        return scores
    rng = np.random.default_rng([protocol.seed, 1])
    clouds = [sample_surface(part, _ALIGN_POINTS, rng=rng)[0] for part in triangles]
    best = align_by_yaw(clouds[0], clouds[1], num_yaws=protocol.num_yaws)
    return dataclasses.replace(scores, aligned=_score(_moved(best, triangles[0]), triangles[1], is_closed, protocol))


def chamfer_distance(points: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "m 3"]) -> float:
    """Return the mean of the two mean distances to the nearest point of the other cloud; distances are not squared."""
    forward, backward = nearest_distances(points, reference)
    return float(forward.mean() + backward.mean()) / 2


def nearest_distances(
    points: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "m 3"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Return the distance of each point to the nearest of the other cloud, both ways.

    Raises:
        ValueError: If a cloud is empty.
    """
    (forward, _), (backward, _) = _nearest(points, reference)
    return forward, backward


def align_by_yaw(
    points: Float[np.ndarray, "n 3"], reference: Float[np.ndarray, "m 3"], *, num_yaws: int = 24
) -> Float[np.ndarray, "4 4"]:
    """Return the rigid transform that brings a cloud onto a reference: the best of `num_yaws` turns about y, refined by ICP.

    Chamfer distance decides; no turn at all is among the candidates.
    """
    starts = []
    for turn in range(num_yaws):
        matrix = np.eye(4)
        matrix[:3, :3] = yaw_rotation(2 * np.pi * turn / num_yaws)
        starts.append((chamfer_distance(apply_transform(matrix, points), reference), turn, matrix))
    refined = [_icp(points, reference, matrix) for _, _, matrix in sorted(starts)[:_ALIGN_CANDIDATES]]
    candidates = [matrix for _, _, matrix in starts] + refined
    costs = [chamfer_distance(apply_transform(matrix, points), reference) for matrix in candidates]
    return candidates[int(np.argmin(costs))]


def _score(triangles: np.ndarray, reference: np.ndarray, is_closed: bool, protocol: GeometryProtocol) -> GeometryScores:
    rng = np.random.default_rng(protocol.seed)
    points, normals, _ = sample_surface(triangles, protocol.num_points, rng=rng)
    targets, target_normals, _ = sample_surface(reference, protocol.num_points, rng=rng)
    (forward, to_reference), (backward, to_points) = _nearest(points, targets)
    iou = None
    if is_closed and protocol.resolution:
        iou = volume_iou(triangles, reference, protocol.resolution)
    return GeometryScores(
        chamfer=float(forward.mean() + backward.mean()) / 2,
        f_scores=tuple(f_score(forward, backward, threshold) for threshold in protocol.thresholds),
        normal_consistency=normal_consistency(normals, target_normals, to_reference, to_points),
        volume_iou=iou,
        protocol=protocol,
    )


def _nearest(points: np.ndarray, reference: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Return distances and indices of nearest neighbors, both ways."""
    from scipy.spatial import cKDTree

    if not len(points) or not len(reference):
        raise ValueError(f"clouds have {len(points)} and {len(reference)} points, expected at least 1")
    return cKDTree(reference).query(points), cKDTree(points).query(reference)


def f_score(forward: Float[np.ndarray, " n"], backward: Float[np.ndarray, " m"], threshold: float) -> float:
    """Return the harmonic mean of the shares of nearest distances, both ways, that are at most a threshold."""
    precision, recall = float((forward <= threshold).mean()), float((backward <= threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def normal_consistency(
    normals: Float[np.ndarray, "n 3"],
    reference: Float[np.ndarray, "m 3"],
    forward: Int[np.ndarray, " n"],
    backward: Int[np.ndarray, " m"],
) -> float:
    """Return the mean |cosine| between unit normals and those of their nearest neighbors, given by index, both ways."""
    there = np.abs((normals * reference[forward]).sum(axis=1)).mean()
    back = np.abs((reference * normals[backward]).sum(axis=1)).mean()
    return float(there + back) / 2


def volume_iou(triangles: Float[np.ndarray, "t 3 3"], reference: Float[np.ndarray, "u 3 3"], resolution: int) -> float:
    """Return intersection over union of two closed surfaces, as given, on the cells of a grid around both."""
    extent = float(max(np.abs(triangles).max(), np.abs(reference).max()))
    own, other = (occupancy_grid(part, resolution, extent=extent) for part in (triangles, reference))
    union = int((own | other).sum())
    return float((own & other).sum()) / union if union else 0.0


def count_pieces(mesh: trimesh.Trimesh, *, min_share: float = 0.0) -> int:
    """Return the number of separate solids of a mesh: surfaces that hang together and enclose volume; the hollows in them are none.

    Faces must point outward: the surface of a hollow then encloses less than nothing, by which it is told from a solid's. A mesh without
    faces has 0 pieces.

    Args:
        mesh: The mesh.
        min_share: Solids that enclose less than this share of what all enclose are not counted.
    """
    # It loads PyTorch, for which no help of the command line waits.
    from hiergen.geometry.surface_extraction import enclosed_volumes

    if not len(mesh.faces):
        return 0
    volumes, _ = enclosed_volumes(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces))
    return int(((volumes > 0) & (volumes >= min_share * volumes.sum())).sum())


def _icp(points: np.ndarray, reference: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    tree = cKDTree(reference)
    for _ in range(_ALIGN_STEPS):
        moved = apply_transform(matrix, points)
        matrix = _rigid(moved, reference[tree.query(moved)[1]]) @ matrix
    return matrix


def _rigid(points: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the rotation and shift with the least squared distance between paired points (Kabsch)."""
    center, target_center = points.mean(axis=0), targets.mean(axis=0)
    u, _, vt = np.linalg.svd((points - center).T @ (targets - target_center))
    keep = np.diag([1.0, 1.0, np.sign(np.linalg.det(vt.T @ u.T))])
    matrix = np.eye(4)
    matrix[:3, :3] = vt.T @ keep @ u.T
    matrix[:3, 3] = target_center - matrix[:3, :3] @ center
    return matrix


def _triangles(name: str, mesh: trimesh.Trimesh) -> np.ndarray:
    if not len(mesh.faces):
        raise ValueError(f"the {name} has no faces: there is nothing to compare")
    return np.asarray(mesh.triangles, np.float64)


def _moved(matrix: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    return apply_transform(matrix, triangles.reshape(-1, 3)).reshape(-1, 3, 3)
