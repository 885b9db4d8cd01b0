from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path

import pytest
import torch
import trimesh
from PIL import Image

from hiergen.demo.pictures import shape_views
from hiergen.demo.tabs import shapes
from hiergen.demo.tabs.shapes import (
    ShapeProgress,
    ShapeRequest,
    _updates,
    describe_mesh,
    draw_views,
    generate_shape,
    make_ready,
)
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.shape import decode_meshes


def test_the_coarse_mesh_comes_first_and_both_are_the_pipelines_own(library) -> None:
    entry = library.get("shapes")
    entry = dataclasses.replace(entry, notes=dataclasses.replace(entry.notes, extraction={"bound": 0.9, "depth": 7}))
    progress = list(generate_shape(entry, ShapeRequest(label=2, seed=4, depth=5), seconds=60.0))
    counts = [len(now.meshes) for now in progress]
    assert counts == sorted(counts)
    assert 1 in counts
    assert progress[-1].is_done
    assert progress[-1].tokens == tuple(spec.num_tokens for spec in entry.tokenizer.specs)
    settings = ExtractionSettings(depth=5, bound=0.9)
    expected = entry.model(
        2,
        generator=torch.Generator().manual_seed(4),
        extraction=settings,
        **{**entry.notes.sampling, "guidance_scale": 2.0},
    )
    for count, mesh in enumerate(progress[-1].meshes, start=1):
        (whole,) = decode_meshes(entry.tokenizer, expected.pyramid.prefix(count), settings)
        assert (mesh.vertices == whole.vertices).all()


def test_a_model_of_pictures_makes_what_its_pipeline_makes_of_the_picture(library) -> None:
    entry, view = library.get("seen"), shape_views()[5]
    *_, last = generate_shape(entry, ShapeRequest(picture=view, seed=4, depth=5), seconds=60.0)
    expected = entry.model(
        view,
        generator=torch.Generator().manual_seed(4),
        extraction=ExtractionSettings(depth=5),
        **{**entry.notes.sampling, "guidance_scale": 2.0},
    )
    assert last.is_done
    assert (last.meshes[-1].vertices == expected.meshes[0].vertices).all()
    with pytest.raises(ValueError, match="picture is None, expected a picture"):
        list(generate_shape(entry, ShapeRequest(), seconds=60.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 9}, "depth is 9, expected 5 to 7"),
        ({"seed": -1}, "seed is -1, expected 0 to"),
        ({"guidance_scale": 1e9}, "guidance_scale is 1000000000.0, expected 0 to 20"),
    ],
)
def test_settings_have_bounds_whoever_sends_them(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        ShapeRequest(label=0, **values)


def test_a_class_that_is_not_there(library) -> None:
    with pytest.raises(ValueError, match="label is 8, expected 0 to 7"):
        list(generate_shape(library.get("shapes"), ShapeRequest(label=8), seconds=60.0))


def test_a_mesh_is_described_and_an_empty_one_said_to_be() -> None:
    assert describe_mesh(trimesh.creation.box(), 16) == "16 tokens: 8 vertices, 12 triangles, watertight"
    assert describe_mesh(trimesh.Trimesh(), 16) == "16 tokens: no surface came out. Try another seed."


def test_every_level_is_on_the_stage_and_the_finest_one_turns(library) -> None:
    entry = library.get("shapes")
    box = trimesh.creation.box()
    now = ShapeProgress(0, (trimesh.Trimesh(), box), (16, 32), is_done=True)
    empty, full = draw_views(entry, now, "lamp")
    assert (full.name, full.size, full.alt) == ("level 2", "32 tokens", "Generated: lamp, level 2, 32 tokens")
    # A level without a surface is an empty studio.
    seen = [Image.open(io.BytesIO(view.pictures[0])).convert("RGB") for view in (empty, full)]
    assert len(seen[0].getcolors()) < 10
    assert len(seen[1].getcolors(10**6)) > 100
    turning = draw_views(entry, now, "lamp", turning=b"RIFF")
    assert [view.pictures[0] for view in turning][1] == b"RIFF"


def test_a_result_comes_with_its_files_and_then_turns(library, monkeypatch) -> None:
    pytest.importorskip("gradio", reason="the demo's page needs gradio")
    monkeypatch.setattr(shapes, "TURNTABLE", (16, 3))
    box = trimesh.creation.box()
    steps = [
        ShapeProgress(1, (), (), is_done=False),
        ShapeProgress(2, (box,), (16,), is_done=False),
        ShapeProgress(0, (box, box), (16, 32), is_done=True),
    ]
    updates, kept = [], []
    for update in _updates(library.get("shapes"), ShapeRequest(label=2, seed=4), iter(steps), turns=True):
        updates.append(update)
        kept.append(Path(update[1]).read_bytes()[:4] if isinstance(update[1], str) else None)
    assert [update[2] for update in updates[:3]] == ["Step 1.", "Step 2.", "Turning it around."]
    assert updates[3][2] == "Done."
    assert updates[3][3]["line"] == "class 2, seed 4. 32 tokens: 8 vertices, 12 triangles, watertight."
    assert kept == [None, None, b"glTF", None]
    frames = [base64.b64decode(update[0].split("image/webp;base64,")[2].partition('"')[0]) for update in updates[2:]]
    assert [b"ANIM" in frame for frame in frames] == [False, True]
    assert updates[3][3]["chosen"] == {"label": 2, "guidance_scale": 2.0, "seed": 4}


def test_finished_shapes_are_made_of_classes_alone(library) -> None:
    assert make_ready(library.get("seen"), seconds=60.0, limit=60.0) == []
    (first,) = make_ready(library.get("shapes"), seconds=0.01, limit=60.0)
    assert (first["title"], first["chosen"]["label"]) == ("class 0", 0)
