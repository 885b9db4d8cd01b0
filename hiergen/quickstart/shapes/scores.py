"""What the shape quickstart measures and shows: reconstructions, generated sets, the contact sheet.

Shapes come class by class in turn: shape k is of class k modulo the number of classes.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES
from hiergen.figures import save_image_grid
from hiergen.geometry.renders import STUDIO
from hiergen.geometry.surface_sampling import sample_surface
from hiergen.metrics.fidelity import FeatureExtractor
from hiergen.metrics.geometry import GeometryProtocol, ShapeSetProtocol, compare_meshes, count_pieces
from hiergen.metrics.shape_sets import compare_rendered_sets, compare_shape_sets, pairwise_chamfer
from hiergen.training.tasks.shape_pictures import mesh_picture

if TYPE_CHECKING:
    import trimesh

#: A detached piece of less than this share of a shape's volume is a speck.
SPECK = 0.002


def reconstruction_scores(
    meshes: Sequence[trimesh.Trimesh], references: Sequence[trimesh.Trimesh], *, seed: int
) -> dict[str, Any]:
    """Return the mean scores of reconstructions. One without a surface counts as IoU 0, F 0, and is left out of the Chamfer mean.

    Raises:
        ValueError: If a reference is not closed: its IoU would count as 0.
    """
    for number, reference in enumerate(references):
        if not reference.is_watertight:
            raise ValueError(f"reference {number} is not watertight: it has no volume to compare")
    protocol = GeometryProtocol(num_points=10_000, resolution=64, normalize="none", seed=seed)
    pairs = [(mesh, reference) for mesh, reference in zip(meshes, references, strict=True) if len(mesh.faces)]
    scores = [compare_meshes(mesh, reference, protocol) for mesh, reference in pairs]
    total = len(meshes)
    return {
        "protocol": str(protocol),
        "without_surface": total - len(scores),
        "iou": sum(score.volume_iou or 0.0 for score in scores) / total,
        "chamfer": float(np.mean([score.chamfer for score in scores])) if scores else None,
        "f_scores": {
            f"{threshold:g}": sum(score.f_scores[k] for score in scores) / total
            for k, threshold in enumerate(protocol.thresholds)
        },
        "normal_consistency": float(np.mean([score.normal_consistency for score in scores])) if scores else None,
    }


def generation_scores(
    generated: Sequence[trimesh.Trimesh],
    test: Sequence[trimesh.Trimesh],
    train: Sequence[trimesh.Trimesh],
    *,
    seed: int,
) -> dict[str, Any]:
    """Return how generated shapes relate to held-out ones, with real training shapes in their place as the yardstick.

    The judge of classes is the nearest training shape in Chamfer distance.
    """
    protocol = ShapeSetProtocol(num_points=1024, normalize=False, seed=seed)
    drawn = {"generated shapes": generated, "real training shapes": train[: len(generated)]}
    sets = []
    for name, meshes in drawn.items():
        usable = [mesh for mesh in meshes if len(mesh.faces)]
        if not usable:
            continue
        scores = compare_shape_sets(usable, test, protocol)
        sets.append(
            {
                "of": name,
                "count": scores.num_generated,
                "against": f"{scores.num_reference} held-out shapes",
                "coverage": scores.coverage,
                "matching_distance": scores.matching_distance,
                "nearest_neighbor_accuracy": scores.nearest_neighbor_accuracy,
            }
        )
    return {
        "protocol": str(protocol),
        "without_surface": sum(not len(mesh.faces) for mesh in generated),
        "sets": sets,
        "judge": f"class of the nearest of {len(train)} real training shapes in Chamfer distance",
        "class_agreement": class_agreement(generated, train, protocol),
        "class_agreement_real": class_agreement(test, train, protocol),
        "whole": whole_shapes(generated, train),
        "whole_but_for_specks": whole_shapes(generated, train, min_share=SPECK),
    }


def whole_shapes(meshes: Sequence[trimesh.Trimesh], train: Sequence[trimesh.Trimesh], *, min_share: float = 0.0) -> int:
    """Return how many shapes are of as many pieces as most training shapes of the class that was asked for.

    Pieces of less than `min_share` of a shape's volume are not counted.
    """
    usual = [
        collections.Counter(map(count_pieces, train[k :: len(PROCEDURAL_CLASSES)])).most_common(1)[0][0]
        for k in range(len(PROCEDURAL_CLASSES))
    ]
    found = [count_pieces(mesh, min_share=min_share) for mesh in meshes]
    return sum(count == usual[number % len(usual)] for number, count in enumerate(found))


def rendered_scores(
    sets: Mapping[str, Sequence[trimesh.Trimesh]],
    reference: Sequence[trimesh.Trimesh],
    extractor: FeatureExtractor,
    *,
    num_views: int = 4,
    size: int = 64,
) -> list[dict[str, Any]]:
    """Return the Fréchet distance between rendered views of each set and of the reference; shapes without a surface are left out."""
    scores = []
    for name, meshes in sets.items():
        usable = [mesh for mesh in meshes if len(mesh.faces)]
        # The least number of pictures that distances are taken between.
        distance = None
        if len(usable) * num_views >= 10:
            found = compare_rendered_sets(usable, reference, extractor, num_views=num_views, size=size)
            distance = found["frechet_distance"]
        scores.append({"of": name, "count": len(usable), "views": num_views, "frechet_distance": distance})
    return scores


def class_agreement(
    meshes: Sequence[trimesh.Trimesh], train: Sequence[trimesh.Trimesh], protocol: ShapeSetProtocol
) -> float:
    """Return how often the nearest training shape in Chamfer distance has the class that was asked for.

    A shape without a surface is of no class.
    """
    labels = [number % len(PROCEDURAL_CLASSES) for number in range(len(meshes))]
    found = [number for number, mesh in enumerate(meshes) if len(mesh.faces)]
    if not found:
        return 0.0
    distance = pairwise_chamfer(
        [_cloud(meshes[number], number, 0, protocol) for number in found],
        [_cloud(mesh, number, 1, protocol) for number, mesh in enumerate(train)],
    )
    said = distance.argmin(axis=1) % len(PROCEDURAL_CLASSES)
    return float(sum(said[k] == labels[number] for k, number in enumerate(found)) / len(meshes))


def _cloud(mesh: trimesh.Trimesh, number: int, group: int, protocol: ShapeSetProtocol) -> np.ndarray:
    rng = np.random.default_rng([protocol.seed, number, group])
    return sample_surface(np.asarray(mesh.triangles), protocol.num_points, rng=rng)[0]


def draw_contact_sheet(
    path: Path,
    rows: Mapping[str, Sequence[trimesh.Trimesh]],
    *,
    column_labels: Sequence[str],
    title: str,
    size: int = 144,
) -> None:
    """Write shaded renders of rows of meshes as one PNG; a mesh without faces is an empty square."""
    save_image_grid(
        path,
        [torch.stack([mesh_picture(mesh, size, STUDIO) for mesh in meshes]) for meshes in rows.values()],
        row_labels=list(rows),
        column_labels=list(column_labels),
        title=title,
        scale=1.0,
    )
