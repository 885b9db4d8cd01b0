from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hiergen.data.shapes.records import (
    ShapeFolder,
    ShapeMeta,
    ShapeRecord,
    encode_png,
    load_meta,
    load_record,
    record_path,
    save_record,
    write_index,
)


@pytest.fixture
def record() -> ShapeRecord:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return ShapeRecord(
        meta=ShapeMeta("thing", "mug", "a/thing.obj", "f" * 64, "s", (0.1, 0.2, 0.3), 2.5, notes={"holes": 2}),
        surface=rng.random((7, 6)).astype(np.float32),
        # 13 labels do not fill whole bytes.
        volume_points=rng.random((13, 3)).astype(np.float16),
        volume_occupancy=rng.random(13) < 0.5,
        near_points=rng.random((5, 3)).astype(np.float16),
        near_occupancy=rng.random(5) < 0.5,
        farthest=np.arange(4, dtype=np.int32),
        volume_sdf=rng.random(13).astype(np.float32),
        views=(encode_png(image), encode_png(image[:3])),
        view_transforms=np.eye(4, dtype=np.float32)[None].repeat(2, axis=0),
    )


def test_a_record_returns_as_it_was(tmp_path: Path, record: ShapeRecord) -> None:
    save_record(record, tmp_path / "a.safetensors")
    loaded = load_record(tmp_path / "a.safetensors")
    assert loaded.meta == record.meta == load_meta(tmp_path / "a.safetensors")
    for field in dataclasses.fields(ShapeRecord):
        value, expected = getattr(loaded, field.name), getattr(record, field.name)
        if isinstance(expected, np.ndarray):
            assert value.dtype == expected.dtype, field.name
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected, field.name
    assert loaded.view(1).shape == (3, 4, 3)
    np.testing.assert_array_equal(loaded.view(0), record.view(0))


def test_the_same_record_gives_the_same_bytes(tmp_path: Path, record: ShapeRecord) -> None:
    save_record(record, tmp_path / "a.safetensors")
    save_record(load_record(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_folder_lists_its_records_by_key(tmp_path: Path, record: ShapeRecord) -> None:
    metas = [dataclasses.replace(record.meta, key=key, class_name=name) for key, name in (("b", "mug"), ("a", "chair"))]
    for meta in metas:
        save_record(dataclasses.replace(record, meta=meta), record_path(tmp_path, meta.key))
    write_index(tmp_path, metas, {"any": "settings"})
    folder = ShapeFolder(tmp_path)
    assert folder.keys == ("a", "b")
    assert folder.class_names == ("chair", "mug")
    assert folder.classes == ("chair", "mug")
    assert [shape.meta.key for shape in folder] == ["a", "b"]
    assert [shape.meta.key for shape in folder[1:]] == ["b"]
    part = folder.select([1])
    assert part.keys == ("b",)
    assert part.classes == folder.classes
    assert part.fingerprint != folder.fingerprint


def test_files_that_are_no_records_are_named(tmp_path: Path, record: ShapeRecord) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a record")
    with pytest.raises(ValueError, match=r"shape record '.*garbage\.safetensors' cannot be read"):
        load_record(garbage)
    with pytest.raises(ValueError, match=r"shape record '.*absent\.safetensors' cannot be read"):
        load_meta(tmp_path / "absent.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is a safetensors file, but no shape record"):
        load_meta(tmp_path / "other.safetensors")
    future = dataclasses.replace(record, meta=dataclasses.replace(record.meta, version=99))
    save_record(future, tmp_path / "future.safetensors")
    with pytest.raises(ValueError, match="has format 99, this version reads 1; prepare it again"):
        load_meta(tmp_path / "future.safetensors")


def test_folders_without_a_good_index_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no readable shapes\.json \(FileNotFoundError"):
        ShapeFolder(tmp_path)
    (tmp_path / "shapes.json").write_text("[]")
    with pytest.raises(ValueError, match=r"has no readable shapes\.json \(TypeError.*hiergen prepare-shapes"):
        ShapeFolder(tmp_path)
    (tmp_path / "shapes.json").write_text(json.dumps({"version": 99, "shapes": [], "classes": []}))
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        ShapeFolder(tmp_path)
