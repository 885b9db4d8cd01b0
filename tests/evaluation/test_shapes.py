from __future__ import annotations

from pathlib import Path

import pytest
import trimesh

from hiergen.evaluation.comparison import compare
from hiergen.evaluation.shapes import ShapesSettings, evaluate_shapes
from hiergen.metrics.geometry import GeometryProtocol
from hiergen.metrics.shape_sets import ShapeSetProtocol


def _write(folder: Path, sides: list[float]) -> str:
    folder.mkdir()
    for index, side in enumerate(sides):
        trimesh.creation.box((side, 1.0, 1.0)).export(folder / f"{index}.obj")
    return str(folder)


def test_boxes_against_themselves_and_against_others(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", [1.0, 2.0, 4.0]), _write(tmp_path / "b", [1.5, 3.0, 6.0])
    quick = {"sets": ShapeSetProtocol(num_points=200), "pairs": GeometryProtocol(num_points=500, resolution=16)}
    same = evaluate_shapes(ShapesSettings(first, first, str(tmp_path / "same"), **quick))
    assert same["metrics"]["coverage"] == 1
    assert same["metrics"]["IoU"] == pytest.approx(1)
    other = evaluate_shapes(ShapesSettings(first, second, str(tmp_path / "other"), **quick))
    assert other["metrics"]["chamfer"] > same["metrics"]["chamfer"]
    assert other["counts"] == {"shapes": 3, "reference": 3, "pairs": 3}
    assert "CD = mean" in (tmp_path / "other" / "report.md").read_text()
    row = compare(tmp_path / "same", tmp_path / "other", resamples=20)["metrics"]["chamfer"]
    assert row["difference"] == pytest.approx(other["metrics"]["chamfer"] - same["metrics"]["chamfer"])


def test_refusals(tmp_path: Path) -> None:
    one = _write(tmp_path / "one", [1.0])
    with pytest.raises(ValueError, match="holds 1 meshes"):
        evaluate_shapes(ShapesSettings(one, one, str(tmp_path / "out")))
    with pytest.raises(ValueError, match="mesh folder 'nowhere' does not exist"):
        evaluate_shapes(ShapesSettings("nowhere", one, str(tmp_path / "out")))
