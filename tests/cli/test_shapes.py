from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from PIL import Image
from torch import nn

from hiergen.__main__ import main
from hiergen.cli.recipes import find_recipe
from hiergen.cli.train import load_recipe
from hiergen.data.shapes import preparation
from hiergen.data.shapes.building import PRESETS, PrepareShapesSettings, build_record
from hiergen.metrics.geometry import count_pieces
from hiergen.pipelines.shape import ClassToShapePipeline, ImageToShapePipeline
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

SMALL = ["--sampling.num-surface", "64", "--sampling.num-volume", "64", "--sampling.num-near", "32"]
PREPARE = [*SMALL, "--sampling.num-farthest", "0", "--views.num-views", "0", "--num-workers", "0"]
ROOT = Path(__file__).parents[2]
TINY_CASCADE = {"dim": 16, "depth": 1, "num_heads": 2, "num_buffer": 2, "head_dim": 16, "head_depth": 1}
TINY_VAE = {"num_tokens": [2, 3], "width": 8, "num_heads": 2, "encoder_depth": 0, "decoder_depth": 0}


def test_meshes_become_records_and_records_become_codes(tmp_path, capsys) -> None:
    for name, size in (("cube", 1.0), ("plank", 0.3)):
        (tmp_path / "meshes" / name).mkdir(parents=True)
        trimesh.creation.box((1.0, size, 1.0)).export(tmp_path / "meshes" / name / "a.ply")
    (tmp_path / "meshes" / "broken.obj").write_text("v 1 2\n")
    shapes = tmp_path / "shapes"
    assert main(["prepare-shapes", str(tmp_path / "meshes"), str(shapes), *PREPARE]) == 0
    printed = capsys.readouterr().out
    assert "2 shapes in" in printed
    assert "skipped broken.obj" in printed
    create("pyramid-vae-tiny", **TINY_VAE, point_counts=[64, 8]).save_pretrained(tmp_path / "vae")
    arguments = ["encode", "--tokenizer", str(tmp_path / "vae"), "--shapes", str(shapes), "--out", str(tmp_path / "c")]
    assert main(arguments) == 0
    assert "2 shapes of 5 tokens" in capsys.readouterr().out


def test_a_tokenizer_of_images_encodes_no_shapes(tmp_path, capsys) -> None:
    create("restok-tiny").save_pretrained(tmp_path / "t")
    arguments = ["encode", "--tokenizer", str(tmp_path / "t"), "--shapes", "procedural", "--out", str(tmp_path / "c")]
    assert main(arguments) == 1
    assert "holds a ResTok, which encodes no shapes" in capsys.readouterr().err


def test_prepare_shapes_needs_a_source_and_a_folder(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["prepare-shapes", "meshes"])
    assert stop.value.code == 2
    assert "usage: hiergen prepare-shapes SRC OUT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["prepare-shapes", "--help"])
    assert capsys.readouterr().out.count("usage: ") == 1
    assert main(["prepare-shapes", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "does not exist; give a folder, a mesh file or 'procedural'" in capsys.readouterr().err


def test_a_stopped_preparation_says_so_and_what_to_run_again(tmp_path, monkeypatch, capsys) -> None:
    made = []

    def stopped(*arguments: Any) -> Any:
        if len(made) == 1:
            signal.raise_signal(signal.SIGTERM)
        made.append(build_record(*arguments))
        return made[-1]

    monkeypatch.setattr(preparation, "build_record", stopped)
    shapes = str(tmp_path / "my shapes")
    command = ["prepare-shapes", "procedural", shapes, "--count", "3", *PREPARE]
    before = signal.getsignal(signal.SIGTERM)
    assert main(command) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert "prepare: 3 shapes of 3 classes in procedural, by 1 process ->" in (said := capsys.readouterr().err)
    assert "hiergen prepare-shapes: stopped; run again to continue" in said
    # As after a kill that left no time for the list.
    (tmp_path / "my shapes" / "shapes.json").unlink()
    train = ["train", "pyramid-vae-tiny", "--task.data.source", shapes, "--out", str(tmp_path / "run")]
    assert main(train) == 1
    again = f"its preparation was stopped after 1 of 3: run it again: {shlex.join(['hiergen', *command])}"
    assert again in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 0
    assert "3 shapes in" in (printed := capsys.readouterr().out)
    assert "2 prepared, 1 there already" in printed


def test_the_preset_of_the_tiny_recipes_is_below_other_options(tmp_path, monkeypatch) -> None:
    asked: list[PrepareShapesSettings] = []
    monkeypatch.setattr(preparation, "prepare_shapes", lambda settings, command: asked.append(settings) or asked)
    tiny = ["prepare-shapes", "procedural", str(tmp_path), "--preset=tiny", "--sampling.num-surface", "2048"]
    with pytest.raises(AttributeError):
        main(tiny)
    (settings,) = asked
    assert (settings.watertight.resolutions, settings.views.num_views) == ((64,), 0)
    assert (settings.sampling.num_surface, settings.sampling.num_farthest) == (2048, 1024)
    batch = load_recipe("pyramid-vae-tiny").task.data.batch
    assert batch.num_points <= PRESETS["tiny"]["sampling"]["num_surface"]
    text = find_recipe("pyramid-vae-tiny").read_text()
    assert "hiergen prepare-shapes MESHES shapes --preset tiny" in text


def test_prepare_shapes_fails_where_no_file_can_be_used(tmp_path, capsys) -> None:
    (tmp_path / "only.obj").write_text("Dear diary\n")
    with pytest.raises(SystemExit) as stop:
        main(["prepare-shapes", str(tmp_path / "only.obj"), str(tmp_path / "shapes"), *PREPARE])
    assert stop.value.code == 1
    assert "skipped only.obj: holds no faces" in capsys.readouterr().out


def test_the_recipe_for_meshes_trains_on_prepared_ones(tmp_path, capsys) -> None:
    for name, size in (("cube", 1.0), ("plank", 0.3)):
        (tmp_path / "meshes").mkdir(exist_ok=True)
        trimesh.creation.box((1.0, size, 1.0)).export(tmp_path / "meshes" / f"{name}_a.obj")
    counts = ["--sampling.num-surface", "2048", "--sampling.num-volume", "512", "--sampling.num-near", "256"]
    options = [*counts, *PREPARE[len(SMALL) :], "--classes-from", "name", "--sampling.num-farthest", "256"]
    assert main(["prepare-shapes", str(tmp_path / "meshes"), str(tmp_path / "shapes"), *options]) == 0
    recipe = str(ROOT / "tokenizers" / "pyramid_vae_meshes_small.py")
    assert load_recipe(recipe).task.data.source == "shapes"
    generator = load_recipe(str(ROOT / "generators" / "mar3d_meshes_small.py"))
    assert Path(generator.task.codes) == Path(load_recipe(recipe).out) / "codes"
    run = ["--task.data.source", str(tmp_path / "shapes"), "--out", str(tmp_path / "run")]
    assert main(["train", recipe, *run, "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["train", recipe, *run, "--samples", "2", "--batch-size", "2"]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory) -> Path:
    """A pipeline from labels and one from images, with random weights whose fields have surfaces."""
    out = tmp_path_factory.mktemp("shapes")
    torch.manual_seed(0)
    tokenizer = create("pyramid-vae-tiny", **TINY_VAE, point_counts=[64, 8], init_scale=0.25)
    nn.init.normal_(tokenizer.decoder.output.weight)
    specs = specs_to_json(tokenizer.specs)
    by_label = create("mar3d-tiny", level_specs=specs, num_classes=4, **TINY_CASCADE)
    ClassToShapePipeline(tokenizer=tokenizer, generator=by_label).save_pretrained(out / "labels")
    encoder = ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 16, "dim": 8}}])
    by_image = create(
        "mar3d-tiny", level_specs=specs, num_classes=None, feature_shapes=encoder.feature_shapes, **TINY_CASCADE
    )
    ImageToShapePipeline(tokenizer=tokenizer, generator=by_image, image_encoder=encoder).save_pretrained(out / "images")
    # A field that is negative everywhere.
    nn.init.zeros_(tokenizer.decoder.output.weight)
    nn.init.constant_(tokenizer.decoder.output.bias, -1.0)
    ClassToShapePipeline(tokenizer=tokenizer, generator=by_label).save_pretrained(out / "empty")
    Image.new("RGB", (20, 10), "red").save(out / "mug.png")
    (out / "notes.png").write_text("no picture")
    return out


def generate(pipeline: Path, out: Path, *options: str) -> int:
    return main(
        ["generate", "--pipeline", str(pipeline), "--out", str(out), "--depth", "4", "--num-steps", "2", *options]
    )


def test_labels_become_glb_files(pipelines, tmp_path, capsys) -> None:
    assert generate(pipelines / "labels", tmp_path, "--labels", "3", "1", "--count", "2") == 0
    assert "4 meshes and grid.png in" in capsys.readouterr().out
    names = ["class0001-000.glb", "class0001-001.glb", "class0003-000.glb", "class0003-001.glb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "grid.png"]
    with Image.open(tmp_path / "grid.png") as sheet:
        assert min(sheet.size) > 200
    for name in names:
        assert len(trimesh.load_mesh(tmp_path / name).faces)
        assert b'"NORMAL"' in (tmp_path / name).read_bytes()


def test_files_have_the_names_of_classes(tmp_path) -> None:
    assert generate(Path("shapes-by-class"), tmp_path, "--labels", "Bed", "3", "--count", "1") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bed-000.glb", "chair-000.glb", "grid.png"]


def test_meshes_are_written_in_the_format_and_size_asked_for(pipelines, tmp_path, capsys) -> None:
    # No labels: all four classes that there are.
    assert generate(pipelines / "labels", tmp_path, "--count", "1", "--mesh-format", "ply", "--max-faces", "2000") == 0
    assert "4 meshes and grid.png in" in capsys.readouterr().out
    files = sorted(tmp_path.glob("*.ply"))
    assert [path.name for path in files] == [f"class000{label}-000.ply" for label in range(4)]
    counts = [len(trimesh.load_mesh(path).faces) for path in files]
    assert all(0 < count <= 2000 for count in counts), counts


def test_pictures_become_glb_files(pipelines, tmp_path, capsys) -> None:
    picture = str(pipelines / "mug.png")
    options = ["--image", picture, picture, "--count", "1", "--min-piece", "0.9"]
    assert generate(pipelines / "images", tmp_path, *options) == 0
    for path in tmp_path.glob("*.glb"):
        assert count_pieces(trimesh.load(path, force="mesh", process=False)) == 1
    assert "2 meshes and grid.png in" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000-mug-000.glb", "001-mug-000.glb", "grid.png"]


def test_a_shape_without_surface_gets_no_file(pipelines, tmp_path, capsys) -> None:
    assert generate(pipelines / "empty", tmp_path, "--labels", "0", "--count", "2") == 0
    assert "0 meshes and grid.png in" in (printed := capsys.readouterr().out)
    assert "2 have no surface and no file" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        ("images", ["--labels", "1"], "is of class ImageToShapePipeline, which takes images, give --image FILE"),
        ("labels", ["--image", "mug.png"], "is of class ClassToShapePipeline, which takes labels, not --image"),
        ("images", ["--image", "none.png"], "none.png' cannot be read: it does not exist"),
        ("images", ["--image", "notes.png"], "notes.png' cannot be read: it is no PNG, JPEG, "),
    ],
)
def test_wrong_conditions_are_explained(pipelines, tmp_path, capsys, monkeypatch, pipeline, options, message) -> None:
    monkeypatch.chdir(pipelines)
    assert generate(pipelines / pipeline, tmp_path, *options) == 1
    assert message in capsys.readouterr().err
