"""Shapes rebuilt by a tokenizer from each of its levels: the rate-distortion page of meshes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hiergen.config import fingerprint, to_json
from hiergen.evaluation.images.rate_distortion import rate_row
from hiergen.evaluation.images.scores import describe_tokens
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.runner import Findings, Work
from hiergen.evaluation.shapes.sources import Meshes, ShapesEvaluation, open_meshes
from hiergen.geometry.poses import fit_transform
from hiergen.geometry.renders import STUDIO, render_mesh
from hiergen.geometry.surface_sampling import sample_surface
from hiergen.metrics.geometry import GeometryProtocol, compare_meshes, count_pieces
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import Prefix
from hiergen.pipelines.shape import decode_meshes
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import derive_seed
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

if TYPE_CHECKING:
    import trimesh

#: Number of shapes that a report shows, and the side of their pictures in pixels.
SHOWN_SHAPES, SHOWN_SIZE = 8, 112
#: Number of points of a cloud where the tokenizer reads any number of them.
NUM_POINTS = 4096


class RebuiltShapes(ShapesEvaluation):
    """Reference shapes against what a tokenizer makes of them from each of its levels.

    Every level of this kind of tokenizer is a whole shape, so the tokens of a row are those of its level alone.
    """

    def open_models(self) -> dict[str, Any]:
        settings = self.settings
        tokenizer = from_pretrained(settings.tokenizer)
        if not isinstance(tokenizer, PyramidVAE):
            raise ValueError(
                f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, expected a tokenizer of shapes"
            )
        torch.nn.Module.to(tokenizer.eval(), self.device)
        self.tokenizer, self.protocol = tokenizer, dataclasses.replace(settings.pairs, normalize="none")
        return {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "seed": settings.seed,
            "depth": settings.depth,
            "pairs": to_json(self.protocol),
        }

    def open_data(self) -> dict[str, Any]:
        references = open_meshes(self.settings.reference, self.settings)
        self.meshes = [_normalized(mesh) for mesh in references.values()]
        self.items = meshes_fingerprint(references)
        return {"reference": self.items}

    def prepare(self) -> Work:
        return Work(len(self.meshes), self._rebuild, "rebuild shapes")

    @torch.no_grad()
    def _rebuild(self, keys: range, _: None) -> dict[str, Tensor]:
        clouds = torch.stack([self._cloud(key) for key in keys])
        pyramid = self.tokenizer.encode(clouds.to(self.tokenizer.device))
        references = [self.meshes[key] for key in keys]
        shown = max(0, SHOWN_SHAPES - keys[0])
        found = {"shown.input": draw_meshes(references[:shown])}
        for level, (spec, tokens) in enumerate(zip(pyramid.specs, pyramid.levels, strict=True)):
            rebuilt = decode_meshes(self.tokenizer, TokenPyramid((tokens,), (spec,)), self.extraction)
            rows = [pair_scores(a, b, self.protocol) for a, b in zip(rebuilt, references, strict=True)]
            for name in rows[0]:
                found[f"{level}.{name}"] = torch.tensor([row[name] for row in rows], dtype=torch.float64)
            found[f"shown.{level}"] = draw_meshes(rebuilt[:shown])
            found[f"tokens.{level}"] = tokens.float()
        return found

    def _cloud(self, key: int) -> Tensor:
        """Return surface points and normals of a shape; the draw depends on the seed and the shape alone."""
        rng = np.random.default_rng(derive_seed(self.settings.seed, "cloud", key))
        count = (self.tokenizer.config["point_counts"] or [NUM_POINTS])[0]
        points, normals, _ = sample_surface(np.asarray(self.meshes[key].triangles), count, rng=rng)
        features = [points, normals] if self.tokenizer.config["point_features"] else [points]
        return torch.from_numpy(np.concatenate(features, axis=1)).float()

    def summarize(self, parts: Parts | None) -> Findings:
        assert parts is not None
        settings, tokenizer, names = self.settings, self.tokenizer, parts.names()
        rows: list[dict[str, Any]] = []
        pictures = {"input": parts.read("shown.input")}
        for level, spec in enumerate(tokenizer.specs):
            values = {name.partition(".")[2]: parts.read(name) for name in names if name.startswith(f"{level}.")}
            metrics = {name: float(value.nanmean()) for name, value in values.items() if not value.isnan().all()}
            size = Prefix("level", level + 1, spec.num_tokens, None, spec.num_tokens * spec.dim)
            rows.append(rate_row(size, metrics, values if settings.resamples else {}))
            pictures[size.caption] = parts.read(f"shown.{level}")
        tokens = tuple(parts.read(f"tokens.{level}") for level in range(len(tokenizer.specs)))
        return Findings(
            what=f"meshes of {settings.reference} rebuilt by {type(tokenizer).__name__} ({settings.tokenizer})",
            metrics=metrics,
            protocol=self._protocol(),
            extractor={"name": "none"},
            reference={"source": settings.reference},
            counts={"shapes": len(tokens[0]), "reference": len(tokens[0])},
            seed=settings.seed,
            warnings=[],
            more={
                "rate_distortion": rows,
                "tokens": describe_tokens(TokenPyramid(tokens, tokenizer.specs), tokenizer, None),
                "items": self.items,
            },
            values=values,
            pictures=pictures,
        )

    def _protocol(self) -> dict[str, str]:
        sizes = ", ".join(f"{spec.num_tokens:,}" for spec in self.tokenizer.specs)
        return {
            "rate": f"levels of {sizes} tokens; each is a whole shape",
            "pairs": f"every shape with what it was rebuilt from, brought to center 0 and longest side 1.9; {self.protocol}",
            "extraction": str(self.extraction),
            "batches": self.settings.passes.rule,
            "missing": "a shape without a surface has IoU, same_pieces and F of 0 and no distances",
        }


def meshes_fingerprint(meshes: Meshes) -> str:
    """Return digits that change when the names or the surfaces of meshes do."""
    return fingerprint([[name, len(mesh.faces), mesh.area] for name, mesh in meshes.items()])


def pair_scores(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, protocol: GeometryProtocol) -> dict[str, float]:
    """Return how far a shape is from its own reference; NaN for what cannot be measured.

    A shape without a surface has IoU and F-scores of 0 and no distances. IoU needs both meshes to be watertight. "same_pieces" is 1 where
    both are of as many pieces, which a broken leg or a speck in the air changes.
    """
    if not len(mesh.faces):
        missing = {"IoU": 0.0, "same_pieces": 0.0, "chamfer": float("nan"), "normal_consistency": float("nan")}
        return missing | {f"F@{threshold:g}": 0.0 for threshold in protocol.thresholds}
    scores = compare_meshes(mesh, reference, protocol)
    found = {
        "IoU": float("nan") if scores.volume_iou is None else scores.volume_iou,
        "same_pieces": float(count_pieces(mesh) == count_pieces(reference)),
        "chamfer": scores.chamfer,
        "normal_consistency": scores.normal_consistency,
    }
    return found | {f"F@{value:g}": score for value, score in zip(protocol.thresholds, scores.f_scores, strict=True)}


def _normalized(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return a mesh in the box that tokenizers are trained on."""
    moved = mesh.copy()
    moved.apply_transform(fit_transform(np.asarray(mesh.triangles).reshape(-1, 3), np.eye(3)))
    return moved


def draw_meshes(meshes: list[trimesh.Trimesh]) -> Tensor:
    """Return pictures of meshes, uint8 `(n, 3, h, w)`; a shape without a surface is a white square."""
    white = np.full((SHOWN_SIZE, SHOWN_SIZE, 3), 255, np.uint8)
    pixels = [render_mesh(mesh, SHOWN_SIZE, settings=STUDIO) if len(mesh.faces) else white for mesh in meshes]
    rows = np.stack(pixels) if pixels else np.zeros((0, SHOWN_SIZE, SHOWN_SIZE, 3), np.uint8)
    return torch.from_numpy(rows).permute(0, 3, 1, 2)
