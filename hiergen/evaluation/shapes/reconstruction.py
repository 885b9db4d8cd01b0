"""Shapes rebuilt by a tokenizer from each of its levels: the rate-distortion page of meshes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hiergen.config import fingerprint, to_json
from hiergen.evaluation.images.rate_distortion import rate_row
from hiergen.evaluation.images.scores import describe_tokens
from hiergen.evaluation.parts import Parts, run_parts
from hiergen.evaluation.shapes.sources import Meshes, ShapesSettings
from hiergen.geometry.poses import fit_transform
from hiergen.geometry.renders import render_mesh
from hiergen.geometry.surface_sampling import sample_surface
from hiergen.metrics.geometry import GeometryProtocol, compare_meshes
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import Prefix
from hiergen.pipelines.shape import decode_meshes
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import derive_seed
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

if TYPE_CHECKING:
    import trimesh

#: Shapes that a report shows, and the side of their pictures.
SHOWN_SHAPES, SHOWN_SIZE = 8, 112
#: Points of a cloud where the tokenizer reads any number of them.
NUM_POINTS = 4096


@dataclasses.dataclass(frozen=True)
class LevelScores:
    """What a report of a shape tokenizer is made of.

    Attributes:
        entries: Of the report, as JSON values.
        values: One row a shape, of the finest level; NaN where a measure does not exist.
        pictures: Rows of uint8 images to show, by caption.
    """

    entries: dict[str, Any]
    values: dict[str, Tensor]
    pictures: dict[str, Tensor]


def open_shape_tokenizer(settings: ShapesSettings, device: torch.device) -> PyramidVAE:
    """Return a tokenizer of shapes in eval mode on a device.

    Raises:
        ValueError: If there is none.
    """
    tokenizer = from_pretrained(settings.tokenizer)
    if not isinstance(tokenizer, PyramidVAE):
        raise ValueError(f"{settings.tokenizer!r} holds a {type(tokenizer).__name__}, expected a tokenizer of shapes")
    torch.nn.Module.to(tokenizer.eval(), device)
    return tokenizer


def _pair_protocol(settings: ShapesSettings) -> GeometryProtocol:
    return dataclasses.replace(settings.pairs, normalize="none")


def rebuilt_identity(tokenizer: PyramidVAE, settings: ShapesSettings) -> dict[str, Any]:
    """Return JSON values that rebuilt shapes depend on, beside the reference."""
    return {
        "kind": "shapes",
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "seed": settings.seed,
        "depth": settings.depth,
        "pairs": to_json(_pair_protocol(settings)),
    }


def evaluate_levels(
    settings: ShapesSettings, tokenizer: PyramidVAE, references: Meshes, out: Path
) -> LevelScores | None:
    """Return the scores of shapes rebuilt from each level; None on all processes but the main one.

    Every level of this kind of tokenizer is a whole shape, so the tokens of a row are those of its level alone.
    """
    protocol = _pair_protocol(settings)
    meshes = [_normalized(mesh) for mesh in references.values()]
    identity = {**rebuilt_identity(tokenizer, settings), "reference": meshes_fingerprint(references)}
    work = _Pass(tokenizer, meshes, settings, protocol)
    parts = run_parts(out / "parts", identity, len(meshes), work, passes=settings.passes, what="rebuild shapes")
    if parts is None:
        return None
    scores = _summarize(parts, tokenizer, settings, protocol)
    scores.entries["items"] = identity["reference"]
    return scores


def meshes_fingerprint(meshes: Meshes) -> str:
    """Return digits that change when the names or the surfaces of meshes do."""
    return fingerprint([[name, len(mesh.faces), mesh.area] for name, mesh in meshes.items()])


def pair_scores(mesh: trimesh.Trimesh, reference: trimesh.Trimesh, protocol: GeometryProtocol) -> dict[str, float]:
    """Return how far a shape is from its own reference; NaN for what cannot be measured.

    A shape without a surface has IoU and F-scores of 0 and no distances. IoU needs both meshes to be watertight.
    """
    if not len(mesh.faces):
        missing = {"IoU": 0.0, "chamfer": float("nan"), "normal_consistency": float("nan")}
        return missing | {f"F@{threshold:g}": 0.0 for threshold in protocol.thresholds}
    scores = compare_meshes(mesh, reference, protocol)
    found = {
        "IoU": float("nan") if scores.volume_iou is None else scores.volume_iou,
        "chamfer": scores.chamfer,
        "normal_consistency": scores.normal_consistency,
    }
    return found | {f"F@{value:g}": score for value, score in zip(protocol.thresholds, scores.f_scores, strict=True)}


def _normalized(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return a mesh in the box that tokenizers are trained on."""
    moved = mesh.copy()
    moved.apply_transform(fit_transform(np.asarray(mesh.triangles).reshape(-1, 3), np.eye(3)))
    return moved


@dataclasses.dataclass(frozen=True)
class _Pass:
    tokenizer: PyramidVAE
    meshes: list[trimesh.Trimesh]
    settings: ShapesSettings
    protocol: GeometryProtocol

    @torch.no_grad()
    def __call__(self, keys: range, _: None) -> dict[str, Tensor]:
        clouds = torch.stack([self._cloud(key) for key in keys])
        pyramid = self.tokenizer.encode(clouds.to(self.tokenizer.device))
        references = [self.meshes[key] for key in keys]
        shown = max(0, SHOWN_SHAPES - keys[0])
        found = {"shown.input": draw_meshes(references[:shown])}
        for level, (spec, tokens) in enumerate(zip(pyramid.specs, pyramid.levels, strict=True)):
            rebuilt = decode_meshes(self.tokenizer, TokenPyramid((tokens,), (spec,)), self.settings.extraction)
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


def _summarize(
    parts: Parts, tokenizer: PyramidVAE, settings: ShapesSettings, protocol: GeometryProtocol
) -> LevelScores:
    names = parts.names()
    rows: list[dict[str, Any]] = []
    pictures = {"input": parts.read("shown.input")}
    for level, spec in enumerate(tokenizer.specs):
        values = {name.partition(".")[2]: parts.read(name) for name in names if name.startswith(f"{level}.")}
        metrics = {name: float(value.nanmean()) for name, value in values.items() if not value.isnan().all()}
        size = Prefix("level", level + 1, spec.num_tokens, None, spec.num_tokens * spec.dim)
        rows.append(rate_row(size, metrics, values if settings.resamples else {}))
        pictures[f"{spec.num_tokens} tokens"] = parts.read(f"shown.{level}")
    tokens = tuple(parts.read(f"tokens.{level}") for level in range(len(tokenizer.specs)))
    entries = {
        "what": f"meshes of {settings.reference} rebuilt by {type(tokenizer).__name__} ({settings.tokenizer})",
        "metrics": rows[-1]["metrics"],
        "rate_distortion": rows,
        "tokens": describe_tokens(TokenPyramid(tokens, tokenizer.specs), tokenizer, None),
        "protocol": {
            "rate": f"levels of {', '.join(f'{spec.num_tokens:,}' for spec in tokenizer.specs)} tokens; each is a whole shape",
            "pairs": f"every shape with what it was rebuilt from, brought to center 0 and longest side 1.9; {protocol}",
            "extraction": str(settings.extraction),
            "batches": settings.passes.rule,
            "missing": "a shape without a surface has IoU and F of 0 and no distances",
        },
        "counts": {"shapes": len(tokens[0]), "reference": len(tokens[0])},
    }
    return LevelScores(entries, values, pictures)


def draw_meshes(meshes: list[trimesh.Trimesh]) -> Tensor:
    """Return pictures of meshes, uint8 `(n, 3, h, w)`; a shape without a surface is a white square."""
    white = np.full((SHOWN_SIZE, SHOWN_SIZE, 3), 255, np.uint8)
    pixels = [render_mesh(mesh, SHOWN_SIZE) if len(mesh.faces) else white for mesh in meshes]
    rows = np.stack(pixels) if pixels else np.zeros((0, SHOWN_SIZE, SHOWN_SIZE, 3), np.uint8)
    return torch.from_numpy(rows).permute(0, 3, 1, 2)
