"""Meshes against reference meshes: how one set relates to the other and, where shapes have a reference of their own, how far each is
from it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.config import to_json
from hiergen.environment import choose_device
from hiergen.evaluation.features.extractors import Extractor, build_extractor, check_extractor
from hiergen.evaluation.images.sampling import DRAW_RULE, LABEL_RULES
from hiergen.evaluation.parts import refuse_others
from hiergen.evaluation.protocol import environment
from hiergen.evaluation.report import publish
from hiergen.evaluation.shapes.reconstruction import (
    SHOWN_SHAPES,
    draw_meshes,
    evaluate_levels,
    meshes_fingerprint,
    open_shape_tokenizer,
    pair_scores,
    rebuilt_identity,
)
from hiergen.evaluation.shapes.sources import (
    Meshes,
    ShapesSettings,
    generate_meshes,
    generated_identity,
    list_meshes,
    open_generator,
    open_meshes,
)
from hiergen.evaluation.shapes.views import view_distances
from hiergen.files import check_writable
from hiergen.geometry.meshes import require_shape_libraries
from hiergen.metrics.shape_sets import compare_shape_sets


def evaluate_shapes(settings: ShapesSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the meshes or the models do not fit together; before any long work.
        ImportError: If a library for meshes is not installed.
    """
    require_shape_libraries()
    given = [name for name in ("shapes", "pipeline", "tokenizer") if getattr(settings, name)]
    if len(given) != 1:
        raise ValueError(f"got {' and '.join(given) or 'none'} of --shapes, --pipeline and --tokenizer, expected one")
    started, out, device = time.perf_counter(), check_writable(settings.out), choose_device(settings.passes.device)
    if settings.views.num_views:
        check_extractor(settings.views.extractor)
    for source in (settings.shapes, settings.reference):
        if source:
            list_meshes(source)
    tokens = open_generator(settings, device) if settings.pipeline else None
    tokenizer = open_shape_tokenizer(settings, device) if settings.tokenizer else None
    if tokens is not None:
        refuse_others(out / "parts", generated_identity(tokens, settings))
    elif tokenizer is not None:
        refuse_others(out / "parts", rebuilt_identity(tokenizer, settings))
    extractor = build_extractor(settings.views.extractor, device) if settings.views.num_views else None
    judged = open_meshes(settings.shapes, settings) if settings.shapes else {}
    references = open_meshes(settings.reference, settings)
    report = _start(settings, len(references), device)
    if tokenizer is not None:
        found = evaluate_levels(settings, tokenizer, references, out)
        if found is None:
            return None
        report |= found.entries
        report["wall_time_s"] = round(time.perf_counter() - started, 1)
        return publish(out, report, values=found.values, pictures=found.pictures, device=device)
    if tokens is not None:
        made = generate_meshes(tokens, settings, out)
        if made is None:
            return None
        judged = made
        report["protocol"] |= {
            "labels": LABEL_RULES[settings.labels],
            "draws": DRAW_RULE,
            "sampling": str(settings.sampling),
            "extraction": str(settings.extraction),
            "batches": settings.passes.rule,
        }
        report["metrics"]["without_surface"] = 1 - len(made) / settings.num_shapes
    values = _score(judged, references, settings, report)
    if extractor is not None:
        _score_views(judged, references, settings, extractor, report, device)
    shown = min(SHOWN_SHAPES, len(judged), len(references))
    sets = {"judged": judged, "reference": references} if shown else {}
    pictures = {name: draw_meshes(list(meshes.values())[:shown]) for name, meshes in sets.items()}
    report["wall_time_s"] = round(time.perf_counter() - started, 1)
    return publish(out, report, values=values, pictures=pictures, device=device)


def _start(settings: ShapesSettings, num_reference: int, device: torch.device) -> dict[str, Any]:
    """Return the entries that every kind of evaluation of shapes has."""
    source = settings.shapes or settings.pipeline or settings.tokenizer
    return {
        "kind": "shapes",
        "what": f"meshes of {source} against those of {settings.reference}",
        "metrics": {},
        "protocol": {},
        "extractor": {"name": "none"},
        "reference": {"source": settings.reference},
        "counts": {"reference": num_reference},
        "seed": settings.seed,
        "settings": {**to_json(settings), "distances": {"resamples": settings.resamples}},
        "environment": environment(device),
        "warnings": [],
    }


def _score(
    judged: Meshes, references: Meshes, settings: ShapesSettings, report: dict[str, Any]
) -> dict[str, Tensor] | None:
    """Enter the scores of two sets, and of pairs of one name, into a report; return the values of the pairs."""
    report["counts"]["shapes"] = len(judged)
    report["protocol"]["sets"] = str(settings.sets)
    if judged:
        scores = compare_shape_sets(list(judged.values()), list(references.values()), settings.sets)
        report["metrics"] |= {
            "coverage": scores.coverage,
            "MMD": scores.matching_distance,
            "1-NNA": scores.nearest_neighbor_accuracy,
        }
    else:
        report["warnings"].append("no shape has a surface: there are no sets to compare")
    shared = [name for name in judged if name in references]
    report["counts"]["pairs"] = len(shared)
    report["protocol"]["pairs"] = str(settings.pairs) if shared else "no files of the same name"
    if not shared:
        return None
    rows = [pair_scores(judged[name], references[name], settings.pairs) for name in shared]
    report["items"] = meshes_fingerprint({name: references[name] for name in shared})
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
    report["metrics"] |= {name: float(value.nanmean()) for name, value in values.items() if not value.isnan().all()}
    return values


def _score_views(
    judged: Meshes,
    references: Meshes,
    settings: ShapesSettings,
    extractor: Extractor,
    report: dict[str, Any],
    device: torch.device,
) -> None:
    """Enter the distances between rendered views into a report."""
    sets = list(judged.values()), list(references.values())
    found = view_distances(*sets, settings.views, extractor, seed=settings.seed, device=device)
    report["metrics"] |= found.metrics
    report["warnings"] += found.warnings
    report["extractor"] = extractor.about()
    report["protocol"]["views"] = str(settings.views)
    report["counts"]["views of the shapes"] = len(judged) * settings.views.num_views
    report["counts"]["views of the reference"] = len(references) * settings.views.num_views


def run_shapes(settings: ShapesSettings) -> None:
    """Evaluate and say where the report is."""
    report = evaluate_shapes(settings)
    if report is not None:
        print(
            f"{', '.join(f'{k} {v:.4g}' for k, v in report['metrics'].items())}\nreport: {Path(settings.out) / 'report.md'}"
        )
