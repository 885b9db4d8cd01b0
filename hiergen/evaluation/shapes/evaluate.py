"""Meshes against reference meshes: how one set relates to the other and, where shapes have a reference of their own, how far each is
from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hiergen.evaluation.features.extractors import build_extractor
from hiergen.evaluation.images.sampling import open_tokens
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.runner import Findings, Work, run_evaluation
from hiergen.evaluation.shapes.reconstruction import (
    SHOWN_SHAPES,
    RebuiltShapes,
    draw_meshes,
    meshes_fingerprint,
    pair_scores,
)
from hiergen.evaluation.shapes.settings import ShapesSettings
from hiergen.evaluation.shapes.sources import Meshes, ShapesEvaluation, open_meshes
from hiergen.evaluation.shapes.views import view_distances
from hiergen.geometry.meshes import load_mesh
from hiergen.geometry.surface_extraction import save_mesh
from hiergen.metrics.geometry import count_pieces
from hiergen.metrics.shape_sets import compare_shape_sets
from hiergen.pipelines.shape import decode_meshes


def evaluate_shapes(settings: ShapesSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the meshes or the models do not fit together; before any long work.
        ImportError: If a library for meshes is not installed.
    """
    return run_evaluation(RebuiltShapes(settings) if settings.tokenizer else ShapeSets(settings))


class ShapeSets(ShapesEvaluation):
    """Meshes of a folder, or generated ones, against reference meshes."""

    def open_models(self) -> dict[str, Any]:
        settings = self.settings
        self.tokens = open_tokens(settings, "ClassToShapePipeline", self.device) if settings.pipeline else None
        return {} if self.tokens is None else {**self.tokens.identity, "depth": settings.depth}

    def open_data(self) -> dict[str, Any]:
        settings = self.settings
        self.extractor = build_extractor(settings.views.extractor, self.device) if settings.views.num_views else None
        self.judged = open_meshes(settings.shapes, settings) if settings.shapes else {}
        self.references = open_meshes(settings.reference, settings)
        return {}

    def prepare(self) -> Work | None:
        return None if self.tokens is None else Work(self.settings.num_shapes, self._generate, "generate shapes")

    @torch.no_grad()
    def _generate(self, keys: range, _: None) -> dict[str, Tensor]:
        """Write generated meshes as GLB files in `out/meshes`; a shape without a surface gets none."""
        assert self.tokens is not None
        made = decode_meshes(self.tokens.tokenizer, self.tokens.draw(keys), self.extraction)  # type: ignore[arg-type]
        for key, mesh in zip(keys, made, strict=True):
            if len(mesh.faces):
                save_mesh(mesh, self.out / "meshes" / f"{key:06d}.glb")
        return {"faces": torch.tensor([len(mesh.faces) for mesh in made])}

    def summarize(self, parts: Parts | None) -> Findings:
        settings = self.settings
        found = Findings(
            what=f"meshes of {settings.shapes or settings.pipeline} against those of {settings.reference}",
            metrics={},
            protocol={},
            extractor={"name": "none"},
            reference={"source": settings.reference},
            counts={"reference": len(self.references)},
            seed=settings.seed,
            warnings=[],
        )
        if parts is not None:
            self.judged = self._read_generated(parts, found)
        self._score_sets(found)
        values = self._score_pairs(found)
        self._score_views(found)
        shown = min(SHOWN_SHAPES, len(self.judged), len(self.references))
        sets = {"judged": self.judged, "reference": self.references} if shown else {}
        found.pictures.update({name: draw_meshes(list(meshes.values())[:shown]) for name, meshes in sets.items()})
        return dataclasses.replace(found, values=values)

    def _read_generated(self, parts: Parts, found: Findings) -> Meshes:
        """Return the generated meshes that have a surface, and say in the report how they were made."""
        keys = [key for key, faces in enumerate(parts.read("faces").tolist()) if faces]
        found.protocol.update(
            **self.settings.draw_protocol,
            extraction=str(self.extraction),
            batches=self.settings.passes.rule,
        )
        found.metrics["without_surface"] = 1 - len(keys) / self.settings.num_shapes
        return {f"{key:06d}": load_mesh(self.out / "meshes" / f"{key:06d}.glb") for key in keys}

    def _score_sets(self, found: Findings) -> None:
        """Enter how the two sets relate."""
        found.counts["shapes"] = len(self.judged)
        found.protocol["sets"] = str(self.settings.sets)
        if not self.judged:
            found.warnings.append("no shape has a surface: there are no sets to compare")
            return
        for name, meshes in (("pieces", self.judged), ("pieces_reference", self.references)):
            found.metrics[name] = sum(map(count_pieces, meshes.values())) / len(meshes)
        scores = compare_shape_sets(list(self.judged.values()), list(self.references.values()), self.settings.sets)
        found.metrics.update(
            {
                "coverage": scores.coverage,
                "MMD": scores.matching_distance,
                "1-NNA": scores.nearest_neighbor_accuracy,
            }
        )

    def _score_pairs(self, found: Findings) -> dict[str, Tensor] | None:
        """Enter how far shapes are from the references of the same name; return the values of the pairs."""
        shared = [name for name in self.judged if name in self.references]
        found.counts["pairs"] = len(shared)
        found.protocol["pairs"] = str(self.settings.pairs) if shared else "no files of the same name"
        if not shared:
            return None
        rows = [pair_scores(self.judged[name], self.references[name], self.settings.pairs) for name in shared]
        found.more["items"] = meshes_fingerprint({name: self.references[name] for name in shared})
        values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}
        found.metrics.update(
            {name: float(value.nanmean()) for name, value in values.items() if not value.isnan().all()}
        )
        return values

    def _score_views(self, found: Findings) -> None:
        """Enter the distances between rendered views of the two sets."""
        if self.extractor is None:
            return
        sets, views = (list(self.judged.values()), list(self.references.values())), self.settings.views
        distances = view_distances(*sets, views, self.extractor, seed=self.settings.seed, device=self.device)
        found.metrics.update(distances.metrics)
        found.warnings.extend(distances.warnings)
        found.extractor.update(self.extractor.about())
        found.protocol["views"] = str(views)
        found.counts["views of the shapes"] = len(self.judged) * views.num_views
        found.counts["views of the reference"] = len(self.references) * views.num_views
