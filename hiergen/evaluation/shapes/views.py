"""Distances between features of rendered views of two sets of meshes, by torch-fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hiergen.evaluation.features.distances import Distances, kernel_name, measure
from hiergen.evaluation.features.extractors import Extractor
from hiergen.evaluation.features.references import Reference
from hiergen.evaluation.settings import DistanceConfig
from hiergen.evaluation.shapes.settings import RenderedViewsConfig
from hiergen.metrics.fidelity import MIN_IMAGES
from hiergen.metrics.frechet import Moments
from hiergen.metrics.shape_sets import render_set

if TYPE_CHECKING:
    import trimesh

#: Number of pictures that the extractor takes at once.
BATCH = 32


def view_distances(
    judged: Sequence[trimesh.Trimesh],
    references: Sequence[trimesh.Trimesh],
    config: RenderedViewsConfig,
    extractor: Extractor,
    *,
    seed: int,
    device: torch.device,
) -> Distances:
    """Return the distances between the views of two sets: "views FID" and "views KID", by the extractor's names for them.

    Where a set has too few views there are none, and a warning says so.

    Args:
        judged: Meshes with faces.
        references: Meshes they should resemble.
        config: Which views are compared.
        extractor: Feature extractor made from `config.extractor`.
        seed: Seed of the kernel distance's subsets.
        device: Device of the extractor.
    """
    counts = [len(meshes) * config.num_views for meshes in (judged, references)]
    if min(counts) < MIN_IMAGES:
        return Distances(
            {}, {}, [f"there are {counts[0]} and {counts[1]} views, too few for a distance: {MIN_IMAGES} are needed"]
        )
    pools = [_features(meshes, config, extractor, device) for meshes in (judged, references)]
    reference = Reference(Moments.of(pools[1]), None, pools[1], {})
    found = measure({"pool": pools[0]}, reference, extractor, DistanceConfig(seed=seed))
    warnings = [warning.replace("images", "views") for warning in found.warnings]
    # Views of one shape resemble each other: they are each other's nearest neighbors, which precision and recall are made of, and
    # intervals that take them for independent draws would be too narrow.
    kept = {f"views {name}": found.metrics[name] for name in (extractor.distance, kernel_name(extractor.distance))}
    return Distances(kept, {}, warnings)


def _features(
    meshes: Sequence[trimesh.Trimesh], config: RenderedViewsConfig, extractor: Extractor, device: torch.device
) -> Tensor:
    views = torch.from_numpy(render_set(meshes, num_views=config.num_views, size=config.size)).permute(0, 3, 1, 2)
    return torch.cat([extractor(part.contiguous().to(device))["pool"].cpu() for part in views.split(BATCH)])
