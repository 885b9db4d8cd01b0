"""Halves of shapes completed by a toy, against the whole ones."""

from __future__ import annotations

import math

import pytest
import torch

from hiergen.evaluation.shapes.completion import halve, score_completion
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

trimesh = pytest.importorskip("trimesh")


def test_half_of_the_points_lie_on_one_side() -> None:
    points = torch.rand(100, 6, generator=torch.Generator().manual_seed(0))
    kept = halve(points, angle=math.pi / 2)
    assert len(kept) == 50
    assert kept[:, 2].min() >= points[:, 2].median()
    other = halve(points, angle=-math.pi / 2)
    assert torch.equal(torch.cat((kept, other))[:, 2].sort().values, points[:, 2].sort().values)
    # Whole rows, with their normals.
    assert all((points == row).all(dim=1).any() for row in kept)


def test_scores_of_a_toy(monkeypatch) -> None:
    pytest.importorskip("skimage")
    torch.manual_seed(0)
    tokenizer = create("pyramid-vae-tiny").eval()
    maker = create("mar3d-tiny", depth=1, num_classes=2, level_specs=specs_to_json(tokenizer.specs)).eval()
    pipe = ClassToShapePipeline(tokenizer=tokenizer, generator=maker)
    pipe.set_progress_bar_config(disable=True)
    boxes = [trimesh.creation.box((1.0, 1.5, 0.5)), trimesh.creation.icosphere(radius=0.8)]
    seen = {}

    def vary(points, labels, **options):
        seen["points"], seen["labels"] = points, labels
        return ClassToShapePipeline.vary(pipe, points, labels, **options)

    monkeypatch.setattr(pipe, "vary", vary)
    # What is made is not looked at here: the whole shapes in its place are as good as can be.
    monkeypatch.setattr("hiergen.evaluation.shapes.completion.decode_meshes", lambda *_: boxes)
    settings = {"num_steps": 1, "head_steps": 2, "extraction": ExtractionSettings(depth=4, coarse_depth=3)}
    found = score_completion(pipe, boxes, [0, 1], **settings)
    assert set(found) == {
        f"{score}_{kind}" for score in ("iou", "chamfer", "empty") for kind in ("whole", "half", "completed", "plain")
    }
    assert found["iou_whole"] == pytest.approx(1.0)
    assert found["empty_whole"] == 0
    assert 0 <= found["empty_completed"] <= 1
    count = tokenizer.config["point_counts"][0]
    assert (tuple(seen["points"].shape), seen["labels"]) == ((2, count // 2, 6), [0, 1])
    with pytest.raises(ValueError, match="labels holds 1, expected 2, one per shape"):
        score_completion(pipe, boxes, [0], **settings)
