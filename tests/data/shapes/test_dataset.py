from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hiergen.data.shapes.dataset import (
    TEST_OFFSET,
    ShapeBatchConfig,
    ShapeDataConfig,
    ShapeDataset,
    is_test,
    open_shapes,
    procedural_records,
)
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES, procedural_shape
from hiergen.data.shapes.records import (
    ShapeFolder,
    ShapeMeta,
    ShapeRecord,
    encode_png,
    record_path,
    save_record,
    write_index,
)
from hiergen.geometry.poses import fit_transform
from hiergen.geometry.surface_sampling import SamplingSettings

SMALL = SamplingSettings(num_surface=512, num_volume=2000, num_near=300, num_farthest=64)
BATCH = ShapeBatchConfig(num_points=128, num_queries=256)


@pytest.fixture(scope="module")
def records() -> list[ShapeRecord]:
    return procedural_records(8, seed=1, sampling=SMALL)


def _ball_record(num_volume: int = 40_000) -> ShapeRecord:
    """A flat ellipsoid whose occupancy is known everywhere."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(4000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radii = np.array([0.95, 0.5, 0.3])
    points = direction * radii
    normals = points / radii**2
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    volume = rng.uniform(-1.05, 1.05, (num_volume, 3)).astype(np.float16)
    near = (points + rng.normal(0, 0.02, points.shape)).astype(np.float16)
    return ShapeRecord(
        meta=ShapeMeta(key="ball", class_name="ball", source_digest="ab"),
        surface=np.concatenate([points, normals], axis=1).astype(np.float32),
        volume_points=volume,
        volume_occupancy=((volume.astype(float) / radii) ** 2).sum(axis=1) <= 1,
        near_points=near,
        near_occupancy=((near.astype(float) / radii) ** 2).sum(axis=1) <= 1,
        farthest=np.arange(10, dtype=np.int32),
    )


def test_sample_has_the_promised_shapes_and_true_occupancy(records: list[ShapeRecord]) -> None:
    data = ShapeDataset(records, BATCH, classes=PROCEDURAL_CLASSES)
    for index in range(len(data)):
        item = data[index]
        assert {k: (tuple(v.shape), v.dtype) for k, v in item.items()} == {
            "points": ((128, 6), torch.float32),
            "queries": ((256, 3), torch.float32),
            "occupancy": ((256,), torch.float32),
            "label": ((), torch.int64),
        }
        shape = procedural_shape(index, seed=1)
        assert PROCEDURAL_CLASSES[int(item["label"])] == shape.class_name
        inside = shape.solid.contains(item["queries"].double().numpy())
        np.testing.assert_array_equal(item["occupancy"].numpy() == 1, inside)
        # The last half lies near the surface.
        distance = torch.cdist(item["queries"], torch.from_numpy(records[index].surface[:, :3])).min(dim=1).values
        assert distance[128:].median() < distance[:128].median()
        torch.testing.assert_close(item["points"][:, 3:].norm(dim=1), torch.ones(128))


def test_samples_are_functions_of_seed_epoch_and_index(records: list[ShapeRecord]) -> None:
    config = dataclasses.replace(BATCH, yaw=True, mirror=True, min_scale=0.7)
    data, again = ShapeDataset(records, config), ShapeDataset(records, config)
    batch = data.batch([(3, 0), (3, 1), (5, 0)], seed=0)
    swapped = again.batch([(5, 0), (3, 1), (3, 0)], seed=0)
    for name, value in batch.items():
        assert torch.equal(value, swapped[name].flip(0)), name
    assert not torch.equal(batch["points"][0], batch["points"][1])
    assert not torch.equal(batch["queries"][0], data.batch([(3, 0)], seed=1)["queries"][0])


def test_augmented_samples_keep_their_truth() -> None:
    record = _ball_record()
    config = ShapeBatchConfig(num_points=4000, num_queries=8000, yaw=True, mirror=True, min_scale=0.6)
    data = ShapeDataset([record], config)
    for epoch in range(3):
        item = data.sample(0, epoch=epoch, seed=0)
        points, normals = item["points"][:, :3].double(), item["points"][:, 3:].double()
        assert points.abs().max() <= 0.951
        # The ellipsoid in its new pose, fitted to the returned surface: x' A x = 1, exact for six unknowns.
        x, y, z = points.unbind(1)
        design = torch.stack([x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z], dim=1)
        a = torch.linalg.lstsq(design, torch.ones(len(points), 1, dtype=torch.float64)).solution[:, 0]
        form = torch.stack([a[[0, 3, 4]], a[[3, 1, 5]], a[[4, 5, 2]]])
        q = item["queries"].double()
        value = torch.einsum("pi,ij,pj->p", q, form, q)
        clear = (value - 1).abs() > 0.02
        assert torch.equal(value[clear] < 1, item["occupancy"][clear] == 1)
        gradient = points @ form
        assert (torch.nn.functional.cosine_similarity(gradient, normals) > 0.99).all()


def test_turned_volume_queries_still_fill_the_cube_uniformly() -> None:
    config = ShapeBatchConfig(num_points=10, num_queries=20_000, near_fraction=0.0, yaw=True)
    queries = ShapeDataset([_ball_record()], config).sample(0, epoch=1, seed=0)["queries"]
    assert queries.abs().max() <= 1.05
    cells = ((queries + 1.05) / 2.1 * 4).long().clamp(0, 3)
    count = torch.bincount(cells[:, 0] * 16 + cells[:, 1] * 4 + cells[:, 2], minlength=64).double()
    # 312 expected a cell; the record's 40,000 stored points are themselves a sample, hence the wide band.
    assert (count / count.mean() - 1).abs().max() < 0.35


def test_ordered_points_begin_with_farthest_points(records: list[ShapeRecord]) -> None:
    data = ShapeDataset(records, dataclasses.replace(BATCH, num_ordered=32))
    points = data[2]["points"][:, :3]
    for step in range(1, 32):
        nearest = torch.cdist(points, points[:step]).min(dim=1).values
        assert nearest[step] == pytest.approx(float(nearest.max()), abs=1e-6)
    plain = ShapeDataset(records, BATCH)[2]["points"]
    assert {tuple(p) for p in data[2]["points"].tolist()} == {tuple(p) for p in plain.tolist()}


def test_images_come_with_the_pose_they_show() -> None:
    record = _ball_record()
    red, blue = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    turn = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    poses = np.stack([np.eye(4), fit_transform(record.surface[:, :3], turn)]).astype(np.float32)
    record = dataclasses.replace(record, views=(encode_png(red), encode_png(blue)), view_transforms=poses)
    data = ShapeDataset([record], ShapeBatchConfig(num_points=1000, num_queries=100, image=True))
    seen = set()
    for epoch in range(8):
        item = data.sample(0, epoch=epoch, seed=0)
        level = float(item["image"].mean())
        seen.add(level)
        assert item["image"].shape == (3, 4, 4)
        # The long axis of the ellipsoid is x in the first pose and z in the second.
        longest = int(item["points"][:, :3].abs().amax(dim=0).argmax())
        assert longest == (0 if level == -1 else 2)
    assert seen == {-1.0, 1.0}


def test_test_shapes_are_others_than_train_shapes() -> None:
    config = ShapeDataConfig(count=3, sampling=SMALL, batch=BATCH)
    train, test = open_shapes(config), open_shapes(dataclasses.replace(config, split="test"))
    assert TEST_OFFSET % len(PROCEDURAL_CLASSES) == 0
    assert train.labels == test.labels == (0, 1, 2)
    assert not torch.equal(train[0]["points"], test[0]["points"])
    assert train.fingerprint != test.fingerprint
    assert train.fingerprint == open_shapes(config).fingerprint


def test_folders_split_by_key(tmp_path: Path, records: list[ShapeRecord]) -> None:
    metas = []
    for number in range(30):
        meta = dataclasses.replace(records[number % 8].meta, key=f"shape-{number}")
        save_record(dataclasses.replace(records[number % 8], meta=meta), record_path(tmp_path, meta.key))
        metas.append(meta)
    write_index(tmp_path, metas, {})
    config = ShapeDataConfig(source=str(tmp_path), split="all", batch=BATCH)
    parts = {split: open_shapes(dataclasses.replace(config, split=split)) for split in ("all", "train", "test")}
    num_test = sum(is_test(meta.key) for meta in metas)
    assert (len(parts["all"]), len(parts["train"]), len(parts["test"])) == (30, 30 - num_test, num_test)
    assert num_test > 0
    assert len({part.fingerprint for part in parts.values()}) == 3
    assert parts["test"].classes == parts["all"].classes
    keys = ShapeFolder(tmp_path).keys
    item, index = parts["all"][4], int(keys[4].split("-")[1])
    assert torch.equal(item["label"], torch.tensor(parts["all"].classes.index(records[index % 8].meta.class_name)))


def test_what_a_record_lacks_is_named(records: list[ShapeRecord]) -> None:
    record = records[0]

    def error(config: ShapeBatchConfig, shape: ShapeRecord = record) -> str:
        with pytest.raises(ValueError) as info:
            ShapeDataset([shape], config)[0]
        return str(info.value)

    assert error(ShapeBatchConfig(num_points=600)) == "shape 'bed-1-0' has 512 surface points, num_points is 600"
    no_near = dataclasses.replace(record, near_points=record.near_points[:0], near_occupancy=record.near_occupancy[:0])
    assert error(BATCH, no_near) == "shape 'bed-1-0' has no near queries; set near_fraction to 0"
    empty = dataclasses.replace(
        record, volume_points=record.near_points[:0], volume_occupancy=record.near_occupancy[:0]
    )
    assert error(BATCH, empty) == "shape 'bed-1-0' has no volume queries; set near_fraction to 1"
    assert "has no views; prepare it with num_views above 0" in error(dataclasses.replace(BATCH, image=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": 0}, "num_points is 0, num_queries 256, expected at least 1"),
        ({"num_ordered": 129}, "num_ordered is 129, expected 0 to num_points = 128"),
        ({"near_fraction": 1.5}, "near_fraction is 1.5, expected 0 to 1"),
        ({"min_scale": 0.0}, "min_scale is 0.0, expected above 0 and at most 1"),
        ({"image": True, "yaw": True}, "image excludes yaw, mirror and min_scale"),
    ],
)
def test_bad_batch_configs_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BATCH, **change)


def test_bad_sources_are_refused(records: list[ShapeRecord], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are no shape records"):
        ShapeDataset([], BATCH)
    with pytest.raises(ValueError, match=r"records have classes \['bed'\], expected some of \['mug'\]"):
        ShapeDataset(records[:1], BATCH, classes=["mug"])
    # Where types are checked as the suite runs, a wrong literal is refused before our message is.
    with pytest.raises((ValueError, TypeError), match=r"split is 'val', expected 'train', 'test' or 'all'|Type-check"):
        open_shapes(ShapeDataConfig(split="val"))  # type: ignore[arg-type]
    save_record(records[0], record_path(tmp_path, records[0].meta.key))
    write_index(tmp_path, [records[0].meta], {})
    with pytest.raises(ValueError, match=r"the test split of .* is empty: the folder holds 1 shapes"):
        open_shapes(ShapeDataConfig(source=str(tmp_path), split="test"))
