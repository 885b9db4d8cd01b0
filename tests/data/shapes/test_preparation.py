from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from hiergen.data.shapes import preparation as shape_preparation
from hiergen.data.shapes.building import PrepareShapesSettings, build_record, find_jobs, source_digest
from hiergen.data.shapes.config import ShapeBatchConfig
from hiergen.data.shapes.dataset import ShapeDataset, procedural_records
from hiergen.data.shapes.preparation import PrepareSummary, prepare_shapes
from hiergen.data.shapes.records import ShapeFolder, load_record
from hiergen.data.shapes.views import ViewSettings
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.geometry.watertight import WatertightSettings

SAMPLING = SamplingSettings(num_surface=256, num_volume=600, num_near=100, num_farthest=32)
VIEWS = ViewSettings(num_views=2, size=16)


def _settings(source: Path | str, out: Path, **changes: Any) -> PrepareShapesSettings:
    default = PrepareShapesSettings(
        source=str(source),
        out=str(out),
        sampling=SAMPLING,
        views=VIEWS,
        watertight=WatertightSettings(resolutions=(32,)),
        num_workers=0,
        show_progress=False,
    )
    return dataclasses.replace(default, **changes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two good shapes of two classes, one that must be remeshed, three that cannot be used, and a text."""
    folder = tmp_path / "source"
    for name in ("box", "ball", "bad"):
        (folder / name).mkdir(parents=True)
    box = trimesh.creation.box(extents=(2.0, 1.0, 1.0))
    box.apply_translation((10, 0, 0))
    box.export(folder / "box" / "box_1.obj")
    box.update_faces(np.arange(12) > 1)
    overlapping = trimesh.util.concatenate([box, trimesh.creation.icosphere(subdivisions=1, radius=0.7)])
    overlapping.export(folder / "box" / "open box.stl")
    trimesh.creation.icosphere(subdivisions=2).export(folder / "ball" / "ball.glb")
    (folder / "bad" / "empty.obj").write_bytes(b"")
    (folder / "bad" / "noise.ply").write_bytes(b"noise")
    shutil.copy(folder / "box" / "box_1.obj", folder / "box" / "copy.obj")
    (folder / "notes.txt").write_text("hello")
    return folder


def _hashes(out: Path) -> dict[str, str]:
    files = sorted((out / "records").rglob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_folder_is_prepared_and_what_is_skipped_is_told(tmp_path: Path, source: Path) -> None:
    summary = prepare_shapes(_settings(source, tmp_path / "out"))
    assert (summary.num_prepared, summary.num_reused) == (3, 0)
    assert summary.skipped == {
        "bad/empty.obj": "is empty",
        "bad/noise.ply": "has no PLY header",
        "box/copy.obj": "has the same content as 'box/box_1.obj'",
    }
    assert summary.classes == {"ball": 1, "box": 2}
    assert summary.ignored == {".txt": 1}
    assert sum(summary.methods.values()) == 3
    text = str(summary)
    assert text.startswith(f"3 shapes in {tmp_path / 'out'}: 3 prepared, 0 there already, 3 skipped, in ")
    assert "  skipped bad/empty.obj: is empty" in text
    assert "  not meshes: .txt 1" in text
    saved = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert PrepareSummary(**saved) == summary

    folder = ShapeFolder(tmp_path / "out")
    assert folder.classes == ("ball", "box")
    shapes = {record.meta.source: record for record in folder}
    meta = shapes["box/box_1.obj"].meta
    assert meta.center == pytest.approx((10, 0, 0))
    assert meta.scale == pytest.approx(0.95)
    assert meta.method == "exact"
    assert len(meta.source_digest) == 64
    record = shapes["ball/ball.glb"]
    np.testing.assert_allclose(np.linalg.norm(record.surface[:, :3], axis=1), 0.93, atol=0.025)
    for points, inside in (
        (record.volume_points, record.volume_occupancy),
        (record.near_points, record.near_occupancy),
    ):
        radius = np.linalg.norm(points.astype(float), axis=1)
        assert inside[radius < 0.9].all()
        assert not inside[radius > 0.951].any()
    assert record.view(1).shape == (16, 16, 3)
    data = ShapeDataset(folder, ShapeBatchConfig(num_points=64, num_queries=64, image=True))
    assert set(data[0]) == {"points", "queries", "occupancy", "label", "image"}


def test_a_second_run_does_nothing_and_an_interrupted_one_continues(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "whole"
    prepare_shapes(_settings(source, whole))
    expected = _hashes(whole)
    times = {path: path.stat().st_mtime_ns for path in (whole / "records").rglob("*") if path.is_file()}
    again = prepare_shapes(_settings(source, whole))
    assert (again.num_prepared, again.num_reused, len(again.skipped)) == (0, 3, 3)
    assert times == {path: path.stat().st_mtime_ns for path in (whole / "records").rglob("*") if path.is_file()}

    part = tmp_path / "part"
    made = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made == 5:
            raise KeyboardInterrupt
        return build_record(*arguments)

    monkeypatch.setattr(shape_preparation, "build_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_shapes(_settings(source, part))
    monkeypatch.undo()
    # What was finished is usable at once, and is not taken for all.
    caplog.clear()
    usable = len(ShapeFolder(part))
    assert 0 < usable < 3
    assert f"its preparation was stopped after {usable} of 6: run it again; it is read as it is" in caplog.text
    resumed = prepare_shapes(_settings(source, part))
    assert resumed.num_prepared > 0
    assert resumed.num_reused > 0
    assert resumed.num_prepared + resumed.num_reused == 3
    assert _hashes(part) == expected
    caplog.clear()
    assert len(ShapeFolder(part)) == 3
    assert caplog.text == ""
    assert (part / "shapes.json").read_bytes() == (whole / "shapes.json").read_bytes()


def test_records_do_not_depend_on_the_number_of_processes(tmp_path: Path, source: Path) -> None:
    for workers in (0, 2):
        prepare_shapes(_settings(source, tmp_path / str(workers), num_workers=workers))
    expected = _hashes(tmp_path / "0")
    assert len(expected) == 4
    assert _hashes(tmp_path / "2") == expected
    assert (tmp_path / "2" / "shapes.json").read_bytes() == (tmp_path / "0" / "shapes.json").read_bytes()


def test_what_changes_is_made_anew(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    prepare_shapes(_settings(source, out))
    # A skipped file that was mended, a record that was damaged, a source that is gone.
    trimesh.creation.cylinder(radius=1, height=1, sections=8).export(source / "bad" / "empty.obj")
    victim = next(path for path in (out / "records").rglob("ball-*.safetensors"))
    victim.write_bytes(b"damaged")
    (source / "box" / "copy.obj").unlink()
    summary = prepare_shapes(_settings(source, out))
    assert (summary.num_prepared, summary.num_reused) == (2, 2)
    assert list(summary.skipped) == ["bad/noise.ply"]
    assert load_record(victim).meta.class_name == "ball"
    assert not list((out / "skipped").glob("empty*"))
    other = prepare_shapes(_settings(source, out, seed=1))
    assert (other.num_prepared, other.num_reused) == (4, 0)


def test_skipped_files_are_tried_again_when_asked(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tried: list[str] = []

    def failing(job: Any, *rest: Any) -> Any:
        tried.append(job.source)
        raise ZeroDivisionError("a bug in a library")

    monkeypatch.setattr(shape_preparation, "build_record", failing)
    first = prepare_shapes(_settings(source / "ball", out))
    assert first.skipped == {"ball.glb": "ZeroDivisionError: a bug in a library"}
    prepare_shapes(_settings(source / "ball", out))
    assert tried == ["ball.glb"]
    monkeypatch.undo()
    assert prepare_shapes(_settings(source / "ball", out)).num_prepared == 0
    assert prepare_shapes(_settings(source / "ball", out, retry_skipped=True)).num_prepared == 1


def test_a_shape_that_takes_too_long_is_given_up(tmp_path: Path, source: Path) -> None:
    summary = prepare_shapes(_settings(source / "ball", tmp_path / "out", num_workers=1, timeout=0.01))
    assert summary.skipped == {"ball.glb": "took longer than 0.01 s"}
    kept = prepare_shapes(_settings(source / "ball", tmp_path / "out"))
    assert kept.skipped == {"ball.glb": "took longer than 0.01 s"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and links")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_cannot_be_opened_is_skipped_by_name(tmp_path: Path, source: Path, num_workers: int) -> None:
    os.mkfifo(source / "bad" / "pipe.obj")
    (source / "bad" / "link.stl").symlink_to("nowhere.stl")
    (source / "bad" / "folder.obj").mkdir()
    summary = prepare_shapes(_settings(source, tmp_path / "out", num_workers=num_workers, timeout=60.0))
    assert summary.num_prepared == 3
    assert summary.skipped["bad/pipe.obj"] == "is not a regular file"
    assert summary.skipped["bad/link.stl"] == "cannot be read (No such file or directory)"
    assert "bad/folder.obj" not in summary.skipped
    # Nothing is remembered of a file that was not read.
    (source / "bad" / "link.stl").unlink()
    trimesh.creation.cone(1.0, 2.0, sections=8).export(source / "bad" / "link.stl")
    assert prepare_shapes(_settings(source, tmp_path / "out")).num_prepared == 1


def test_shapes_without_volume_are_skipped_and_tangles_closed(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    needle = trimesh.creation.box(extents=(1, 0.003, 0.003))
    needle.export(folder / "needle.ply")
    tangle = trimesh.creation.icosphere(subdivisions=1)
    tangle.vertices = np.random.default_rng(0).permutation(tangle.vertices)
    tangle.export(folder / "tangle.ply")
    settings = _settings(folder, tmp_path / "out", classes_from="none")
    summary = prepare_shapes(settings)
    assert summary.skipped["needle.ply"].startswith("encloses almost nothing: a volume of")
    assert summary.methods == {"voxels 32": 1}
    assert ShapeFolder(tmp_path / "out")[0].meta.notes["parts"] == 1


def test_surfaces_that_occur_twice_are_listed_once(tmp_path: Path, source: Path) -> None:
    box = source / "box"
    # Another color, and another unit of length: not the same file, but the same surface.
    (box / "painted.obj").write_text("usemtl red\n" + (box / "box_1.obj").read_text())
    large = trimesh.load_mesh(box / "box_1.obj", process=False)
    large.apply_scale(1000.0)
    large.export(box / "scaled.obj")
    summary = prepare_shapes(_settings(box, tmp_path / "out"))
    assert summary.skipped == {
        "copy.obj": "has the same content as 'box_1.obj'",
        "painted.obj": "has the same surface as 'box_1.obj'",
        "scaled.obj": "has the same surface as 'box_1.obj'",
    }
    assert len(ShapeFolder(tmp_path / "out")) == 2
    kept = prepare_shapes(_settings(box, tmp_path / "out", keep_duplicates=True))
    assert (kept.num_prepared, kept.num_reused, kept.skipped) == (0, 5, {})


def test_procedural_shapes_are_prepared_as_in_memory(tmp_path: Path) -> None:
    settings = _settings("procedural", tmp_path / "out", count=3, offset=8, seed=2)
    assert prepare_shapes(settings).methods == {"procedural": 3}
    memory = {
        record.meta.key: record for record in procedural_records(3, seed=2, offset=8, sampling=SAMPLING, views=VIEWS)
    }
    for record in ShapeFolder(tmp_path / "out"):
        twin = memory[record.meta.key]
        np.testing.assert_array_equal(record.surface, twin.surface)
        np.testing.assert_array_equal(record.near_occupancy, twin.near_occupancy)
        assert record.views == twin.views


def test_foreign_layouts_are_imported(tmp_path: Path) -> None:
    folder = tmp_path / "source" / "mug"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (300, 3))
    sdf = 0.7 - np.linalg.norm(points, axis=1)
    np.savez(folder / "one.npz", surface=np.eye(40, 6) + 0.1, rand_points=points, sdfs=sdf)
    (folder / "two.npz").write_bytes(b"no")
    summary = prepare_shapes(_settings(tmp_path / "source", tmp_path / "out", layout="sdf"))
    assert summary.methods == {"imported sdf": 1}
    assert summary.skipped["mug/two.npz"].startswith("is no readable .npz")
    record = ShapeFolder(tmp_path / "out")[0]
    assert record.meta.class_name == "mug"
    assert record.meta.sdf_sign == "positive inside"
    np.testing.assert_array_equal(record.volume_occupancy, sdf.astype(np.float32) >= 1e-3)


def test_classes_and_axes(tmp_path: Path, source: Path) -> None:
    names = {job.source: job.class_name for job in find_jobs(_settings(source, tmp_path, classes_from="name"))[0]}
    assert names["box/box_1.obj"] == "box"
    assert names["box/open box.stl"] == "open"
    assert {job.class_name for job in find_jobs(_settings(source, tmp_path, classes_from="none"))[0]} == {""}
    single = find_jobs(_settings(source / "ball" / "ball.glb", tmp_path))[0]
    assert [(job.source, job.class_name) for job in single] == [("ball.glb", "")]
    # A cone that points along the source's up axis points along y in the record.
    cone = trimesh.creation.cone(radius=0.5, height=2.0, sections=12)
    for axis, columns in (("z", [0, 1, 2]), ("x", [2, 0, 1]), ("y", [0, 2, 1])):
        turned = trimesh.Trimesh(cone.vertices[:, columns], cone.faces, process=False)
        turned.export(tmp_path / f"{axis}.obj")
        settings = _settings(tmp_path / f"{axis}.obj", tmp_path, up_axis=axis)
        job = find_jobs(settings)[0][0]
        record = build_record(job, source_digest(job), settings)
        place = record.surface[:, :3]
        tip = np.abs(place[place[:, 1] > 0.6][:, [0, 2]]).max()
        foot = np.abs(place[place[:, 1] < -0.6][:, [0, 2]]).max()
        assert tip < 0.2 < foot
        assert np.linalg.det(np.linalg.lstsq(place[:3], record.surface[:3, :3], rcond=None)[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "usd"}, "layout is 'usd', expected one of meshes, sdf, occupancy, vecset"),
        ({"classes_from": "luck"}, "classes_from is 'luck', expected one of folder, name, none"),
        ({"up_axis": "w"}, "up_axis is 'w', expected one of y, z, x"),
        ({"count": 0}, "count is 0, offset 0, seed 0; expected at least 1, 0 and 0"),
        ({"timeout": 0.0}, "timeout is 0.0, expected seconds above 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    # Where types are checked as the suite runs, a wrong literal is refused before our message is.
    with pytest.raises((ValueError, TypeError), match=f"{message}|Type-check error"):
        _settings(tmp_path, tmp_path, **change)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"shape source '.*absent' does not exist; give a folder, a mesh file or 'procedural'"
    ):
        prepare_shapes(_settings(tmp_path / "absent", tmp_path / "out"))
    with pytest.raises(ValueError, match=r"holds no shapes \(\.glb, \.gltf, \.obj, \.off, \.ply, \.stl\)"):
        prepare_shapes(_settings(tmp_path, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"holds no shapes \(layout 'vecset'\)"):
        prepare_shapes(_settings(tmp_path, tmp_path / "out", layout="vecset"))


def test_real_meshes_are_prepared(tmp_path: Path) -> None:
    default = Path(__file__).resolve().parents[4] / "shared" / "data"
    mesh = Path(os.environ.get("HIERGEN_DATA", default)) / "meshes" / "spot" / "spot.obj"
    if not mesh.is_file():
        pytest.skip("the mesh 'spot' is not there; set HIERGEN_DATA")
    summary = prepare_shapes(_settings(mesh, tmp_path / "out"))
    assert (summary.num_prepared, summary.skipped) == (1, {})


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX/ball", "@eaDir"])
def test_what_systems_hide_is_no_shape(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "set" / hidden).mkdir(parents=True)
    (tmp_path / "set" / "ball").mkdir()
    for name in ("ball/a", f"{hidden}/b", "ball/._a"):
        for suffix in (".obj", ".npz"):
            (tmp_path / "set" / f"{name}{suffix}").touch()
    (tmp_path / "set" / ".DS_Store").touch()
    jobs, ignored = find_jobs(_settings(tmp_path / "set", tmp_path))
    assert [job.source for job in jobs] == ["ball/a.obj"]
    assert ignored == {".npz": 1}
    jobs, _ = find_jobs(_settings(tmp_path / "set", tmp_path, layout="sdf"))
    assert [job.source for job in jobs] == ["ball/a.npz"]
