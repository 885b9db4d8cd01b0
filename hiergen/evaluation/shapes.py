"""Two folders of meshes: how one set relates to the other and, where files have the same names, how far each shape is from its own."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from hiergen.config import to_json
from hiergen.data.meshes import MESH_SUFFIXES, load_mesh, require_shape_libraries
from hiergen.evaluation.protocol import environment
from hiergen.evaluation.report import publish
from hiergen.files import check_writable
from hiergen.metrics.geometry import GeometryProtocol, compare_meshes
from hiergen.metrics.shape_sets import ShapeSetProtocol, compare_shape_sets


@dataclasses.dataclass(frozen=True)
class ShapesSettings:
    """Evaluate meshes.

    Attributes:
        shapes: Folder of the meshes to judge.
        reference: Folder of the meshes they should resemble. Files of the same name are compared as pairs.
        out: Folder of the report.
        sets: How two sets are compared.
        pairs: How a shape is compared with its own reference.
    """

    shapes: str = "generated"
    reference: str = "reference"
    out: str = "evaluation/shapes"
    sets: ShapeSetProtocol = dataclasses.field(default_factory=ShapeSetProtocol)
    pairs: GeometryProtocol = dataclasses.field(default_factory=GeometryProtocol)


def evaluate_shapes(settings: ShapesSettings) -> dict[str, Any]:
    """Compare two folders of meshes, write the report and return it.

    Raises:
        ValueError: If a folder is missing, holds no mesh, or a mesh cannot be read.
        ImportError: If a library for meshes is not installed.
    """
    require_shape_libraries()
    started, out = time.perf_counter(), check_writable(settings.out)
    files = [_list(folder) for folder in (settings.shapes, settings.reference)]
    meshes, references = ({name: load_mesh(path) for name, path in part.items()} for part in files)
    scores = compare_shape_sets(list(meshes.values()), list(references.values()), settings.sets)
    metrics = {
        "coverage": scores.coverage,
        "MMD": scores.matching_distance,
        "1-NNA": scores.nearest_neighbor_accuracy,
    }
    values = {}
    shared = [name for name in meshes if name in references]
    if shared:
        pairs = [compare_meshes(meshes[name], references[name], settings.pairs) for name in shared]
        values = {
            "chamfer": torch.tensor([pair.chamfer for pair in pairs]),
            "normal_consistency": torch.tensor([pair.normal_consistency for pair in pairs]),
        }
        for k, threshold in enumerate(settings.pairs.thresholds):
            values[f"F@{threshold:g}"] = torch.tensor([pair.f_scores[k] for pair in pairs])
        ious = [pair.volume_iou for pair in pairs if pair.volume_iou is not None]
        metrics |= {name: float(rows.double().mean()) for name, rows in values.items()}
        if ious:
            metrics["IoU"] = sum(ious) / len(ious)
    report = {
        "kind": "shapes",
        "what": f"meshes of {settings.shapes} against those of {settings.reference}",
        "metrics": metrics,
        "protocol": {
            "sets": str(settings.sets),
            "pairs": str(settings.pairs) if shared else "no files of the same name",
        },
        "extractor": {"name": "none"},
        "reference": {"source": settings.reference},
        "counts": {"shapes": len(meshes), "reference": len(references), "pairs": len(shared)},
        "seed": settings.sets.seed,
        "settings": {**to_json(settings), "distances": {"resamples": 200 if shared else 0}},
        "environment": environment(torch.device("cpu")),
        "warnings": [],
        "wall_time_s": round(time.perf_counter() - started, 1),
    }
    return publish(out, report, values=values)


def _list(folder: str) -> dict[str, Path]:
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"mesh folder {folder!r} does not exist")
    found = {path.stem: path for path in sorted(root.iterdir()) if path.suffix.lower() in MESH_SUFFIXES}
    if len(found) < 2:
        raise ValueError(
            f"mesh folder {folder!r} holds {len(found)} meshes ({', '.join(MESH_SUFFIXES)}), expected at least 2"
        )
    return found


def run_shapes(settings: ShapesSettings) -> None:
    """Evaluate and say where the report is."""
    report = evaluate_shapes(settings)
    print(
        f"{', '.join(f'{k} {v:.4g}' for k, v in report['metrics'].items())}\nreport: {Path(settings.out) / 'report.md'}"
    )
