"""How a set of generated shapes relates to a set of real ones: coverage, minimum matching distance, nearest-neighbor accuracy,
and the Fréchet distance between features of rendered views.

Letters: `g` generated shapes, `r` reference shapes, `n` points or images, `d` features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8

from hiergen.geometry.meshes import require_shape_libraries
from hiergen.geometry.poses import apply_transform, fit_transform
from hiergen.geometry.renders import RenderSettings, render_mesh
from hiergen.geometry.surface_sampling import sample_surface
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.geometry import ShapeSetProtocol

if TYPE_CHECKING:
    import trimesh


@dataclasses.dataclass(frozen=True)
class ShapeSetScores:
    """How a generated set relates to a reference set.

    Attributes:
        coverage: Share of reference shapes that are the nearest one of some generated shape; 1 is best.
        matching_distance: Mean distance of a reference shape to the nearest generated one (MMD); 0 is best.
        nearest_neighbor_accuracy: How often the nearest other shape of both sets together comes from the same set (1-NNA); one
            half is best, 1 means that the sets can be told apart.
        num_generated: Number of generated shapes.
        num_reference: Number of reference shapes.
        protocol: How distances were measured.

    Source:
        Achlioptas et al., arXiv:1707.02392 (coverage, MMD); PointFlow, arXiv:1906.12320 (1-NNA). Both use other distances.
    """

    coverage: float
    matching_distance: float
    nearest_neighbor_accuracy: float
    num_generated: int
    num_reference: int
    protocol: ShapeSetProtocol

    def __str__(self) -> str:
        return (
            f"COV {self.coverage:.3f}, MMD {self.matching_distance:.5f}, 1-NNA {self.nearest_neighbor_accuracy:.3f}\n"
            f"[{self.num_generated} generated, {self.num_reference} reference shapes; {self.protocol}]"
        )


def compare_shape_sets(
    generated: Sequence[trimesh.Trimesh], reference: Sequence[trimesh.Trimesh], protocol: ShapeSetProtocol | None = None
) -> ShapeSetScores:
    """Return how a set of generated meshes relates to a reference set; the result prints with its protocol.

    Raises:
        ValueError: If a set is empty or a mesh of it has no faces.
        ImportError: If trimesh or scipy is not installed.
    """
    require_shape_libraries()
    protocol = protocol or ShapeSetProtocol()
    clouds = [
        [_cloud(name, number, mesh, protocol) for number, mesh in enumerate(meshes)]
        for name, meshes in (("generated", generated), ("reference", reference))
    ]
    if not clouds[0] or not clouds[1]:
        raise ValueError(
            f"there are {len(generated)} generated and {len(reference)} reference shapes, expected at least 1"
        )
    together = clouds[0] + clouds[1]
    everything = pairwise_chamfer(together, together)
    count = len(clouds[0])
    across = everything[:count, count:]
    return ShapeSetScores(
        coverage=coverage(across),
        matching_distance=matching_distance(across),
        nearest_neighbor_accuracy=nearest_neighbor_accuracy(everything, count),
        num_generated=count,
        num_reference=len(clouds[1]),
        protocol=protocol,
    )


def pairwise_chamfer(
    clouds: Sequence[Float[np.ndarray, "n 3"]], others: Sequence[Float[np.ndarray, "m 3"]]
) -> Float[np.ndarray, "a b"]:
    """Return the Chamfer distance between all clouds of two lists; given one list twice, each pair is computed once."""
    from scipy.spatial import cKDTree

    is_symmetric = clouds is others
    trees = [cKDTree(cloud) for cloud in clouds]
    other_trees = trees if is_symmetric else [cKDTree(cloud) for cloud in others]
    distance = np.zeros((len(clouds), len(others)))
    for i, tree in enumerate(trees):
        for j in range(i + 1 if is_symmetric else 0, len(others)):
            there = other_trees[j].query(clouds[i])[0].mean()
            back = tree.query(others[j])[0].mean()
            distance[i, j] = (there + back) / 2
    return distance + distance.T if is_symmetric else distance


def coverage(distance: Float[np.ndarray, "g r"]) -> float:
    """Return the share of columns (reference shapes) that are the minimum of some row (generated shape)."""
    return len(np.unique(distance.argmin(axis=1))) / distance.shape[1]


def matching_distance(distance: Float[np.ndarray, "g r"]) -> float:
    """Return the mean over columns (reference shapes) of their minimum."""
    return float(distance.min(axis=0).mean())


def nearest_neighbor_accuracy(distance: Float[np.ndarray, "n n"], num_generated: int) -> float:
    """Return how often the nearest other element belongs to the same of the two sets; the first `num_generated` are one set.

    Raises:
        ValueError: If there are fewer than two elements, or `num_generated` is not between 1 and all but one of them.
    """
    total = len(distance)
    if total < 2 or not 1 <= num_generated < total:
        raise ValueError(f"num_generated is {num_generated} of {total} shapes, expected 1 to all but one")
    others = distance + np.diag(np.full(total, np.inf))
    is_generated = np.arange(total) < num_generated
    return float((is_generated[others.argmin(axis=1)] == is_generated).mean())


def render_set(
    meshes: Sequence[trimesh.Trimesh], *, num_views: int = 4, size: int = 224, settings: RenderSettings | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Return `num_views` pictures of each mesh from equal steps of azimuth, 20 degrees above the horizon; mesh by mesh.

    Raises:
        ValueError: If there is no mesh, or one has no faces.
    """
    if not len(meshes) or num_views < 1:
        raise ValueError(f"there are {len(meshes)} meshes and {num_views} views, expected at least 1")
    azimuths = [math.pi / 4 + 2 * math.pi * number / num_views for number in range(num_views)]
    elevation = math.radians(20)
    return np.stack([render_mesh(mesh, size, azimuth, elevation, settings) for mesh in meshes for azimuth in azimuths])


def compare_rendered_sets(
    generated: Sequence[trimesh.Trimesh],
    reference: Sequence[trimesh.Trimesh],
    extractor: FeatureExtractor,
    *,
    num_views: int = 4,
    size: int = 224,
    seed: int = 0,
) -> dict[str, float]:
    """Return Fréchet distance, kernel distance, precision and recall between rendered views of two sets, by torch-fidelity.

    They mean what the extractor means: name it beside the figures. On InceptionV3 (`hiergen.evaluation.features.extractors`) the Fréchet distance is an FID of clay
    renders; with fewer views than features any of these distances is biased upward.

    Args:
        generated: Meshes to judge.
        reference: Meshes they should resemble.
        extractor: Feature extractor on which distances are measured.
        num_views: Number of views of each mesh.
        size: Height and width of a view in pixels.
        seed: Seed of the kernel distance's subsets.

    Raises:
        ValueError: If a mesh has no faces, or there are fewer than 10 views of a set.
        ImportError: If torch-fidelity is not installed.
    """
    views = [render_set(meshes, num_views=num_views, size=size) for meshes in (generated, reference)]
    images = [torch.from_numpy(part).permute(0, 3, 1, 2).contiguous() for part in views]
    return compare_image_sets(images[0], images[1], extractor, seed=seed)


def _cloud(name: str, number: int, mesh: trimesh.Trimesh, protocol: ShapeSetProtocol) -> np.ndarray:
    if not len(mesh.faces):
        raise ValueError(f"{name} shape {number} has no faces: there is nothing to compare")
    rng = np.random.default_rng([protocol.seed, number, int(name == "reference")])
    points = sample_surface(np.asarray(mesh.triangles), protocol.num_points, rng=rng)[0]
    if not protocol.normalize:
        return points
    return apply_transform(fit_transform(np.asarray(mesh.triangles).reshape(-1, 3), np.eye(3), half_size=1.0), points)
