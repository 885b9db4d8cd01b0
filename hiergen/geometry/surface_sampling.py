"""From a closed, normalized surface to what a shape tokenizer is trained on: surface points, queries with labels, their order.

Letters: `f` faces, `n` surface points, `p` points.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int64, Integer

from hiergen.checked import Checked

if TYPE_CHECKING:
    import trimesh

#: Points times ordered points up to which the plain greedy method is used.
EXACT_FARTHEST_WORK = 4_000_000
#: What the authors of the bucket method advise for clouds of this size.
BUCKET_TREE_HEIGHT = 7

Inside = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SamplingSettings(Checked):
    """How many points of each kind a record holds.

    Attributes:
        num_surface: Number of points on the surface, uniform by area but for `sharp_fraction` of them.
        sharp_fraction: Share of surface points that lie on sharp edges, where detail is.
        sharp_angle: Angle between the normals of two faces, in radians, from which their edge counts as sharp.
        num_volume: Number of queries uniform in the cube of half side `box`.
        num_near: Number of queries near the surface for each of `near_sigmas`.
        near_sigmas: Standard deviations of the noise of near queries.
        num_farthest: Number of surface points put in farthest-point order; at most `num_surface`.
        box: Half the side of the cube of volume queries.
        query_dtype: Type in which queries are stored. They are rounded before they are labelled, so float16 costs no label its truth.

    Source:
        3DShape2VecSet (arXiv:2301.11445) and CraftsMan (arXiv:2405.14979) store such pools; sharp edges as in Dora
        (arXiv:2412.17808).
    """

    num_surface: int = 65_536
    sharp_fraction: float = 0.0
    sharp_angle: float = 0.5
    num_volume: int = 200_000
    num_near: int = 100_000
    near_sigmas: tuple[float, ...] = (0.005, 0.02)
    num_farthest: int = 16_384
    box: float = 1.05
    query_dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_surface", "num_volume"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.num_farthest <= self.num_surface:
            raise ValueError(f"num_farthest is {self.num_farthest}, expected 0 to num_surface = {self.num_surface}")
        if not 0 <= self.sharp_fraction <= 1:
            raise ValueError(f"sharp_fraction is {self.sharp_fraction}, expected 0 to 1")
        if self.num_near < 0 or min(self.near_sigmas, default=1.0) <= 0 or self.box <= 0:
            raise ValueError("num_near must not be negative, near_sigmas and box must be positive")


def sample_shape(
    mesh: trimesh.Trimesh, inside: Inside, settings: SamplingSettings, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the arrays of a `ShapeRecord` by name, without views.

    Args:
        mesh: A closed surface in [-box, box]^3.
        inside: Tells which of the points `(p, 3)`, float64, are inside.
        settings: Number and kinds of points.
        rng: Generator of all random draws.
    """
    num_sharp = round(settings.num_surface * settings.sharp_fraction)
    sharp = sample_sharp_edges(mesh, num_sharp, angle=settings.sharp_angle, rng=rng)
    points, normals, _ = sample_surface(mesh.triangles, settings.num_surface - len(sharp), rng=rng)
    surface = np.concatenate([np.concatenate([points, normals], axis=1), sharp]).astype(np.float32)
    # Stored in random order, so that any prefix is a fair sample.
    surface = surface[rng.permutation(len(surface))]

    volume = rng.uniform(-settings.box, settings.box, (settings.num_volume, 3)).astype(settings.query_dtype)
    near_parts = []
    for sigma in settings.near_sigmas if settings.num_near else ():
        base = sample_surface(mesh.triangles, settings.num_near, rng=rng)[0]
        near_parts.append(base + rng.normal(0.0, sigma, base.shape))
    near = np.concatenate([*near_parts, np.zeros((0, 3))]).astype(settings.query_dtype)
    near = near[rng.permutation(len(near))]
    return {
        "surface": surface,
        "volume_points": volume,
        "volume_occupancy": inside(volume.astype(np.float64)),
        "near_points": near,
        "near_occupancy": inside(near.astype(np.float64)),
        "farthest": farthest_order(surface[:, :3], settings.num_farthest),
    }


def sample_surface(
    triangles: Float[np.ndarray, "f 3 3"], count: int, *, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"], Int64[np.ndarray, " n"]]:
    """Return `count` points uniform by area, the unit normals of their faces, and the faces.

    Raises:
        ValueError: If the surface has no area.
    """
    corner = triangles.astype(np.float64, copy=False)
    cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    total = np.cumsum(double_area)
    if not len(total) or not total[-1] > 0:
        raise ValueError("the surface has no area to draw points from")
    face = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(total) - 1)
    # The square root makes the point uniform in the triangle.
    root, along = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    a, b, c = corner[face, 0], corner[face, 1], corner[face, 2]
    points = a * (1 - root) + b * (root * (1 - along)) + c * (root * along)
    return points, cross[face] / double_area[face, None], face.astype(np.int64)


def sample_sharp_edges(
    mesh: trimesh.Trimesh, count: int, *, angle: float, rng: np.random.Generator
) -> Float[np.ndarray, "n 6"]:
    """Return up to `count` points uniform along sharp edges, each with the normal of one of the two faces; none if there is no such edge."""
    none = np.zeros((0, 6))
    if count == 0:
        return none
    sharp = mesh.face_adjacency_angles >= angle
    edges, faces = mesh.face_adjacency_edges[sharp], mesh.face_adjacency[sharp]
    start, end = mesh.vertices[edges[:, 0]], mesh.vertices[edges[:, 1]]
    total = np.cumsum(np.linalg.norm(end - start, axis=1))
    if not len(total) or not total[-1] > 0:
        return none
    edge = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(total) - 1)
    along = rng.random((count, 1))
    points = start[edge] * (1 - along) + end[edge] * along
    normals = mesh.face_normals[faces[edge, rng.integers(0, 2, count)]]
    return np.concatenate([points, normals], axis=1)


def farthest_order(points: Float[np.ndarray, "n 3"], count: int) -> Integer[np.ndarray, " k"]:
    """Return the indices of `count` points, each the one farthest from those before it; every prefix answers for its own length.

    Small clouds start at index 0. Large ones are ordered by fpsample's bucket method where that is installed, which starts
    elsewhere; without fpsample they take minutes.
    """
    if count == 0:
        return np.zeros(0, np.int32)
    points = np.ascontiguousarray(points, np.float32)
    if importlib.util.find_spec("fpsample") is not None:
        import fpsample

        if len(points) * count <= EXACT_FARTHEST_WORK:
            return fpsample.fps_sampling(points, count, start_idx=0).astype(np.int32)
        return fpsample.bucket_fps_kdline_sampling(points, count, BUCKET_TREE_HEIGHT, start_idx=0).astype(np.int32)
    import torch

    from hiergen.nn.farthest_points import farthest_points

    return farthest_points(torch.from_numpy(points)[None], count)[0].numpy().astype(np.int32)
