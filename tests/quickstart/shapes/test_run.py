from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

import hiergen
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.pipelines.shape_encoding import encode_clouds
from hiergen.quickstart.settings import ShapesQuickstartSettings
from hiergen.quickstart.shapes import run as module
from hiergen.quickstart.shapes.report import shape_markdown
from hiergen.quickstart.shapes.run import run_shapes_quickstart
from hiergen.quickstart.shapes.scores import draw_contact_sheet, generation_scores, reconstruction_scores, whole_shapes
from hiergen.quickstart.stages import StageTimes

COUNT = len(PROCEDURAL_CLASSES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run so short that nothing is learned: what is tested is that every number is measured and every file is there."""
    out = tmp_path_factory.mktemp("quickstart")
    settings = ShapesQuickstartSettings(
        out=str(out),
        num_shapes=COUNT,
        num_test=COUNT,
        tokenizer_samples=16,
        generator_samples=32,
        image_samples=32,
        num_views=1,
        view_size=16,
        num_variants=1,
        num_generated=COUNT,
        depth=3,
        num_workers=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        # Fewer steps and smaller pictures, in the runs that follow too: what is drawn and scored is the same.
        patch.setattr(module, "SAMPLING", {**module.SAMPLING, "num_steps": 2, "head_steps": 4})
        patch.setattr(module, "rendered_scores", functools.partial(module.rendered_scores, num_views=2, size=32))
        patch.setattr(module, "draw_contact_sheet", functools.partial(draw_contact_sheet, size=48))
        yield out, settings, run_shapes_quickstart(settings)


def boxes(count: int, size: float) -> list[trimesh.Trimesh]:
    return [trimesh.creation.box((size, size, size * (1 + k / 10))) for k in range(count)]


def test_everything_that_is_promised_is_written(finished) -> None:
    out, _, report = finished
    for name in ("contact_sheet.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (out / "report.md").read_text() == shape_markdown(report)
    assert [level["tokens"] for level in report["reconstruction"]["levels"]] == [
        spec.num_tokens for spec in hiergen.from_pretrained(out / "tokenizer" / "model").specs
    ]
    assert set(report["seconds"]) >= {"prepare shapes", "train tokenizer", "train generator", "generate", "total"}
    pipe = hiergen.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe([1], num_steps=1, head_steps=2).meshes) == 1
    pipe = hiergen.from_pretrained(out / "image_pipeline")
    pipe.set_progress_bar_config(disable=True)
    with Image.open(next(out.glob("from_views/*-view.png"))) as view:
        assert len(pipe(view, num_steps=1, head_steps=2).meshes) == 1
    assert 0 <= report["from_views"]["iou"] <= 1
    real = next(entry for entry in report["rendered"] if entry["of"] == "real training shapes")
    assert real["frechet_distance"] > 0
    assert not [name for name in os.listdir(out) if name.startswith((".tmp", ".del"))]


def test_meshes_are_written_where_there_is_a_surface(finished) -> None:
    out, settings, report = finished
    missing = report["generation"]["without_surface"]
    files = list(Path(out).glob("samples/*.glb"))
    assert len(files) == settings.num_generated - missing
    for level in report["reconstruction"]["levels"]:
        files = list(Path(out).glob(f"reconstructions/*-{level['tokens']}-tokens.glb"))
        assert len(files) == settings.num_test - level["without_surface"]
        for path in files[:1]:
            assert trimesh.load(path, force="mesh").faces.shape[1] == 3


def test_reconstructions_are_compared_with_the_shapes_they_came_from(finished, monkeypatch) -> None:
    """The records of a folder lie class after class, the references class by class in turn."""
    out, settings, _ = finished
    seen = []

    def look(tokenizer, shapes, indices, **options):
        seen.extend(shapes.classes[shapes.labels[index]] for index in indices)
        return encode_clouds(tokenizer, shapes, indices, **options)

    monkeypatch.setattr(module, "encode_clouds", look)
    tokenizer = hiergen.from_pretrained(out / "tokenizer" / "model")
    twice = dataclasses.replace(settings, out=str(out.parent / "twice"), num_test=2 * COUNT)
    module._prepare(twice)
    module._rebuild(tokenizer, twice)
    assert seen == list(PROCEDURAL_CLASSES) * 2


def test_an_untrained_model_gets_a_bad_report(finished) -> None:
    _, _, report = finished
    assert all(level["iou"] < 0.4 for level in report["reconstruction"]["levels"])
    assert report["generation"]["class_agreement"] < 0.5


def test_running_again_trains_nothing_and_repeats_the_report(finished) -> None:
    out, settings, report = finished
    # What the other tests read is the report of the first run.
    kept = {path: path.read_bytes() for path in out.glob("report.*")}
    before = report["seconds"]["train tokenizer"]
    again = run_shapes_quickstart(settings)
    for path, data in kept.items():
        path.write_bytes(data)
    for name in ("reconstruction", "generation", "from_views"):
        assert again[name] == report[name], name
    # Times add up over sessions.
    assert again["seconds"]["train tokenizer"] > before


def test_scores_of_a_perfect_and_of_a_failed_reconstruction() -> None:
    references = boxes(2, 1.0)
    perfect = reconstruction_scores(references, references, seed=0)
    assert perfect["iou"] == 1.0
    assert perfect["without_surface"] == 0
    half = reconstruction_scores([references[0], trimesh.Trimesh()], references, seed=0)
    assert half["iou"] == 0.5
    assert half["without_surface"] == 1
    assert half["chamfer"] == pytest.approx(perfect["chamfer"], rel=0.2)
    opened = references[1].copy()
    opened.update_faces(np.arange(len(opened.faces)) > 0)
    with pytest.raises(ValueError, match="reference 1 is not watertight: it has no volume to compare"):
        reconstruction_scores(references, [references[0], opened], seed=0)
    none = reconstruction_scores([trimesh.Trimesh()] * 2, references, seed=0)
    assert (none["iou"], none["chamfer"], none["f_scores"]["0.02"]) == (0.0, None, 0.0)


def test_the_judge_of_classes_knows_real_shapes_and_counts_failures() -> None:
    train = [procedural_shape(k).to_mesh() for k in range(2 * COUNT)]
    generated = train[:COUNT]
    scores = generation_scores(generated, train[COUNT:], train, seed=0)
    assert (scores["class_agreement"], scores["whole"], scores["whole_but_for_specks"]) == (1.0, COUNT, COUNT)
    broken = [generated[0] + boxes(1, 0.1)[0].apply_translation((0, 3, 0)), *generated[1:]]
    assert whole_shapes(broken, train) == COUNT - 1
    share = 1 - generated[0].volume / broken[0].volume
    assert [whole_shapes(broken, train, min_share=share * factor) for factor in (0.9, 1.1)] == [COUNT - 1, COUNT]
    shuffled = [*generated[1:], generated[0]]
    assert generation_scores(shuffled, train[COUNT:], train, seed=0)["class_agreement"] == 0.0
    failed = generation_scores([trimesh.Trimesh()] * COUNT, train[COUNT:], train, seed=0)
    assert (failed["without_surface"], failed["class_agreement"], len(failed["sets"])) == (COUNT, 0.0, 1)
    assert failed["whole"] == 0


def test_the_contact_sheet_shows_a_missing_mesh_as_white(tmp_path) -> None:
    rows = {"boxes": boxes(2, 1.0), "missing": [trimesh.Trimesh()] * 2}
    draw_contact_sheet(tmp_path / "sheet.png", rows, column_labels=("a", "b"), title="boxes", size=48)
    with Image.open(tmp_path / "sheet.png") as picture:
        gray = np.asarray(picture.convert("L"))
    height, left = gray.shape[0], gray.shape[1] // 2
    middle = gray[: height // 2, left:]
    assert middle.min() < 200
    assert gray[height * 3 // 4 :, left:].min() == 255


def test_a_stopped_stage_keeps_the_time_it_spent(tmp_path) -> None:
    times = StageTimes(tmp_path / "times.json")
    with pytest.raises(KeyboardInterrupt), times.stage("train"):
        raise KeyboardInterrupt
    assert list(StageTimes(tmp_path / "times.json").seconds) == ["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_shapes": 12}, "num_shapes is 12, expected a multiple of 8"),
        ({"num_generated": 0}, "num_generated is 0, expected a multiple of 8"),
        ({"tokenizer_samples": 0}, "tokenizer_samples is 0, expected at least 1"),
        ({"tokenizer": "restok-tiny"}, "preset 'restok-tiny' is a ResTok, expected a PyramidVAE"),
        ({"generator": "mar-tiny"}, "preset 'mar-tiny' is a MaskedAR, expected a MaskedCascade"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        ShapesQuickstartSettings(**changes)


def test_an_unwritable_folder_is_refused_before_anything_is_trained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        run_shapes_quickstart(ShapesQuickstartSettings(out=str(tmp_path / "file" / "out")))
