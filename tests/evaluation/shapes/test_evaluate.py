from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from torch import nn

from hiergen.evaluation.comparison import compare
from hiergen.evaluation.features.extractors import build_extractor
from hiergen.evaluation.settings import ExtractorConfig, PassConfig, SamplingConfig
from hiergen.evaluation.shapes.evaluate import evaluate_shapes
from hiergen.evaluation.shapes.reconstruction import pair_scores
from hiergen.evaluation.shapes.settings import RenderedViewsConfig, ShapesSettings
from hiergen.geometry.meshes import load_mesh
from hiergen.metrics.geometry import GeometryProtocol, ShapeSetProtocol
from hiergen.metrics.shape_sets import compare_rendered_sets
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


def _write(folder: Path, sides: list[float]) -> str:
    folder.mkdir()
    for index, side in enumerate(sides):
        trimesh.creation.box((side, 1.0, 1.0)).export(folder / f"{index}.obj")
    return str(folder)


def test_boxes_against_themselves_and_against_others(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", [1.0, 2.0, 4.0]), _write(tmp_path / "b", [1.5, 3.0, 6.0])
    quick = {"sets": ShapeSetProtocol(num_points=200), "pairs": GeometryProtocol(num_points=500, resolution=16)}
    same = evaluate_shapes(ShapesSettings(shapes=first, reference=first, out=str(tmp_path / "same"), **quick))
    assert same["metrics"]["coverage"] == 1
    assert same["metrics"]["IoU"] == pytest.approx(1)
    assert [same["metrics"][name] for name in ("same_pieces", "pieces", "pieces_reference")] == [1, 1, 1]
    other = evaluate_shapes(ShapesSettings(shapes=first, reference=second, out=str(tmp_path / "other"), **quick))
    assert other["metrics"]["chamfer"] > same["metrics"]["chamfer"]
    assert other["counts"] == {"shapes": 3, "reference": 3, "pairs": 3}
    assert "CD = mean" in (tmp_path / "other" / "report.md").read_text()
    row = compare(tmp_path / "same", tmp_path / "other", resamples=20)["metrics"]["chamfer"]
    assert row["difference"] == pytest.approx(other["metrics"]["chamfer"] - same["metrics"]["chamfer"])
    # Their references have the same names and are other shapes.
    assert compare(tmp_path / "same", tmp_path / "other", resamples=2)["resampling"].endswith("independent")
    assert compare(tmp_path / "same", tmp_path / "same", resamples=2)["resampling"].endswith("pairs of the same items")


def test_rendered_views_of_two_sets_are_compared(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", [1.0, 2.0, 4.0]), _write(tmp_path / "b", [0.2, 0.4, 8.0])
    views = RenderedViewsConfig(num_views=4, size=16, extractor=ExtractorConfig("mean-color"))
    quick = {"sets": ShapeSetProtocol(num_points=50), "pairs": GeometryProtocol(num_points=50, resolution=8)}
    same = evaluate_shapes(
        ShapesSettings(shapes=first, reference=first, out=str(tmp_path / "same"), views=views, **quick)
    )
    other = evaluate_shapes(
        ShapesSettings(shapes=first, reference=second, out=str(tmp_path / "other"), views=views, **quick)
    )
    # Clay is gray: three equal channels have a singular covariance, and roots of rounding errors are not small.
    assert abs(same["metrics"]["views FD-mean-color"]) < 1e-3 * other["metrics"]["views FD-mean-color"]
    sets = [[load_mesh(path) for path in sorted(Path(folder).iterdir())] for folder in (first, second)]
    by_hand = compare_rendered_sets(*sets, build_extractor(views.extractor), num_views=4, size=16)
    assert other["metrics"]["views FD-mean-color"] == pytest.approx(by_hand["frechet_distance"], rel=1e-4)
    assert other["metrics"]["views KD-mean-color"] == pytest.approx(by_hand["kernel_distance"], rel=1e-4)
    assert other["extractor"]["name"] == "mean-color"
    assert other["counts"]["views of the shapes"] == 12
    assert "4 clay renders of each shape, 16 x 16 pixels" in (tmp_path / "other" / "report.md").read_text()
    with pytest.raises(ValueError, match=r"differ in extractor.name"):
        compare(tmp_path / "other", _plain(tmp_path, first, second, quick))
    few = RenderedViewsConfig(num_views=1, size=16, extractor=views.extractor)
    lacking = evaluate_shapes(
        ShapesSettings(shapes=first, reference=first, out=str(tmp_path / "few"), views=few, **quick)
    )
    assert any("there are 3 and 3 views, too few" in warning for warning in lacking["warnings"])


def _plain(root: Path, first: str, second: str, quick: dict[str, Any]) -> Path:
    evaluate_shapes(ShapesSettings(shapes=first, reference=second, out=str(root / "plain"), **quick))
    return root / "plain"


def test_refusals(tmp_path: Path) -> None:
    one = _write(tmp_path / "one", [1.0])
    with pytest.raises(ValueError, match="holds 1 meshes"):
        evaluate_shapes(ShapesSettings(shapes=one, reference=one, out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match="num_views is -1, expected at least 0"):
        RenderedViewsConfig(num_views=-1)
    with pytest.raises(ValueError, match="size is 0, expected at least 1 pixel"):
        RenderedViewsConfig(size=0)
    with pytest.raises(ValueError, match="views compare sets, and a tokenizer is scored shape by shape"):
        ShapesSettings(tokenizer="t", views=RenderedViewsConfig(num_views=2))
    lost = RenderedViewsConfig(num_views=2, extractor=ExtractorConfig("inception", "absent.pth"))
    with pytest.raises(FileNotFoundError, match=r"the weights of extractor 'inception' are not at 'absent.pth'"):
        evaluate_shapes(ShapesSettings(shapes=one, reference=one, out=str(tmp_path / "out"), views=lost))
    with pytest.raises(ValueError, match="mesh folder 'nowhere' does not exist"):
        evaluate_shapes(ShapesSettings(shapes="nowhere", reference=one, out=str(tmp_path / "out")))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A pipeline with random weights whose fields have surfaces, and one whose fields have none."""
    out = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = create(
        "pyramid-vae-tiny",
        num_tokens=[2, 3],
        width=8,
        num_heads=2,
        encoder_depth=0,
        decoder_depth=0,
        point_counts=[64, 8],
        init_scale=0.25,
    )
    nn.init.normal_(tokenizer.decoder.output.weight)
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "num_buffer": 2, "head_dim": 16, "head_depth": 1}
    generator = create("mar3d-tiny", level_specs=specs_to_json(tokenizer.specs), num_classes=4, **sizes)
    ClassToShapePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(out / "pipeline")
    tokenizer.save_pretrained(out / "tokenizer")
    nn.init.zeros_(tokenizer.decoder.output.weight)
    nn.init.constant_(tokenizer.decoder.output.bias, -1.0)
    ClassToShapePipeline(tokenizer=tokenizer, generator=generator).save_pretrained(out / "empty")
    return out


def _quick(folder: Path, name: str, **changes: Any) -> ShapesSettings:
    return ShapesSettings(
        out=str(folder / name),
        num_reference=3,
        num_shapes=3,
        depth=4,
        sampling=SamplingConfig(num_steps=2),
        resamples=4,
        sets=ShapeSetProtocol(num_points=100),
        pairs=GeometryProtocol(num_points=100, resolution=8),
        passes=PassConfig(batch_size=2, part_size=2, device="cpu"),
        **changes,
    )


def test_generated_meshes_are_scored_and_kept(models: Path, tmp_path: Path) -> None:
    chosen = _quick(tmp_path, "made", pipeline=str(models / "pipeline"))
    report = evaluate_shapes(chosen)
    assert report is not None
    assert report["metrics"]["without_surface"] == 0
    assert {"coverage", "MMD", "1-NNA", "pieces"} <= set(report["metrics"])
    assert sorted(path.name for path in (tmp_path / "made" / "meshes").iterdir()) == [f"00000{k}.glb" for k in range(3)]
    # The files it made give its figures.
    again = evaluate_shapes(_quick(tmp_path, "read", shapes=str(tmp_path / "made" / "meshes")))
    assert again is not None
    assert again["metrics"]["MMD"] == pytest.approx(report["metrics"]["MMD"], rel=1e-6)
    none = evaluate_shapes(_quick(tmp_path, "none", pipeline=str(models / "empty")))
    assert none is not None
    assert none["metrics"] == {"without_surface": 1.0}
    assert "no shape has a surface: there are no sets to compare" in none["warnings"]


def test_a_tokenizer_is_scored_by_level(models: Path, tmp_path: Path) -> None:
    report = evaluate_shapes(_quick(tmp_path, "levels", tokenizer=str(models / "tokenizer")))
    assert report is not None
    assert [row["tokens"] for row in report["rate_distortion"]] == [2, 3]
    assert report["metrics"] == report["rate_distortion"][-1]["metrics"]
    assert (tmp_path / "levels" / "rate_distortion.png").is_file()
    assert (tmp_path / "levels" / "examples.png").is_file()


def test_sources_that_do_not_fit_are_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none of --shapes, --pipeline and --tokenizer, expected one"):
        evaluate_shapes(_quick(tmp_path, "out"))
    with pytest.raises(ValueError, match="holds a PyramidVAE, expected a pipeline of a generator and a tokenizer"):
        evaluate_shapes(_quick(tmp_path, "out", pipeline=str(models / "tokenizer")))
    with pytest.raises(ValueError, match="holds a ClassToShapePipeline, expected a tokenizer of shapes"):
        evaluate_shapes(_quick(tmp_path, "out", tokenizer=str(models / "pipeline")))


def test_a_broken_shape_is_of_other_pieces_than_its_reference() -> None:
    box, far = trimesh.creation.box((1.0, 1.0, 1.0)), trimesh.creation.box((0.1, 0.1, 0.1))
    far.apply_translation((0, 2, 0))
    quick = GeometryProtocol(num_points=100, resolution=8)
    assert pair_scores(box + far, box, quick)["same_pieces"] == 0
    assert pair_scores(box + far, box + far, quick)["same_pieces"] == 1


def test_a_shape_without_a_surface_is_no_match() -> None:
    box = trimesh.creation.box((1.0, 1.0, 1.0))
    scores = pair_scores(trimesh.Trimesh(), box, GeometryProtocol(num_points=100, resolution=8))
    assert (scores["IoU"], scores["same_pieces"]) == (0, 0)
    assert all(scores[name] == 0 for name in scores if name.startswith("F@"))
    assert math.isnan(scores["chamfer"])
    assert math.isnan(scores["normal_consistency"])
