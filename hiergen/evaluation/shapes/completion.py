"""How well half of a shape is completed: what a generator makes of the coarse tokens of a cut cloud, against the whole shape.

Letters: `p` points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.evaluation.shapes.reconstruction import pair_scores
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_sampling import sample_surface
from hiergen.metrics.geometry import GeometryProtocol
from hiergen.pipelines.shape import ClassToShapePipeline, decode_meshes
from hiergen.seeding import derive_seed, make_rng

if TYPE_CHECKING:
    import trimesh

#: Number of points on a whole shape where the tokenizer reads any number of them.
NUM_POINTS = 4096


def halve(points: Float[Tensor, "p 6"], *, angle: float) -> Float[Tensor, "half 6"]:
    """Return the half of a cloud that lies on one side of an upright plane: half of the points, whatever its shape.

    Args:
        points: Points with their normals, y up.
        angle: Direction of the half in the ground plane, in radians.
    """
    direction = torch.tensor([np.cos(angle), 0.0, np.sin(angle)], dtype=points.dtype)
    order = (points[:, :3] @ direction).argsort()
    return points[order[len(points) // 2 :]]


@torch.no_grad()
def score_completion(
    pipe: ClassToShapePipeline,
    meshes: Sequence[trimesh.Trimesh],
    labels: Sequence[int],
    *,
    keep_levels: int = 1,
    seed: int = 0,
    extraction: ExtractionSettings | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Return IoU and Chamfer distance to whole shapes, means over these, of what is made of a half of each.

    "completed" keeps the first levels of the half and draws the others with the shape's class, "half" is the half as the tokenizer rebuilds
    it, "whole" the whole shape as it does, which is the bound, and "plain" a shape of the class that knows nothing of this one.

    Args:
        pipe: The pipeline.
        meshes: Whole shapes, watertight, in the pose and box of the training data.
        labels: Class of each.
        keep_levels: Number of levels that are kept.
        seed: Seed of the points, of the direction that each shape is cut in, and of all draws.
        extraction: How meshes are extracted.
        settings: Settings of the generator.

    Raises:
        ValueError: If there are not as many labels as shapes.
    """
    if len(meshes) != len(labels):
        raise ValueError(f"labels holds {len(labels)}, expected {len(meshes)}, one per shape")
    count = (pipe.tokenizer.config["point_counts"] or [NUM_POINTS])[0]
    wholes, halves = [], []
    for number, mesh in enumerate(meshes):
        rng = np.random.default_rng(derive_seed(seed, "completion", number))
        points, normals, _ = sample_surface(np.asarray(mesh.triangles), count, rng=rng)
        whole = torch.from_numpy(np.concatenate((points, normals), axis=1)).float()
        wholes.append(whole)
        halves.append(halve(whole, angle=float(rng.uniform(0, 2 * np.pi))))
    options: dict[str, Any] = {"extraction": extraction, **settings}
    made = {"whole": _rebuild(pipe, torch.stack(wholes), extraction)}
    # As often as needed, as `vary` reads them.
    made["half"] = _rebuild(pipe, torch.stack(halves)[:, torch.arange(count) % len(halves[0])], extraction)
    options["generator"] = make_rng(seed, "completed")
    made["completed"] = pipe.vary(torch.stack(halves), labels, keep_levels=keep_levels, **options).meshes
    made["plain"] = pipe(labels, **{**options, "generator": make_rng(seed, "plain")}).meshes
    found: dict[str, float] = {}
    protocol = GeometryProtocol(num_points=10_000, resolution=64, normalize="none", seed=seed)
    for name, shapes in made.items():
        scores = [pair_scores(shape, mesh, protocol) for shape, mesh in zip(shapes, meshes, strict=True)]
        found[f"iou_{name}"] = float(np.mean([one["IoU"] for one in scores]))
        found[f"chamfer_{name}"] = float(np.nanmean([one["chamfer"] for one in scores]))
        found[f"empty_{name}"] = float(np.mean([not len(shape.faces) for shape in shapes]))
    return found


def _rebuild(
    pipe: ClassToShapePipeline, points: Float[Tensor, "b p 6"], extraction: ExtractionSettings | None
) -> list[trimesh.Trimesh]:
    return decode_meshes(pipe.tokenizer, pipe.tokenizer.encode(points.to(pipe.tokenizer.device)), extraction)
