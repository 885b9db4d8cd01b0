from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.data.images.on_disk import FolderPictures, PictureSet, SplitPictures, picture_views, random_crop
from hiergen.data.images.pixels import center_crop, to_tensor
from hiergen.data.sources import open_images
from hiergen.data.stream import SampleStream, stream_batches


def gradient(width: int, height: int) -> Image.Image:
    """Red counts columns, green counts rows."""
    rows, columns = np.indices((height, width))
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        path = tmp_path / ("cat" if index < 4 else "ape") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        gradient(40 + index, 30).save(path)
    return tmp_path


def test_a_folder_on_disk_equals_one_in_memory(folder: Path) -> None:
    disk = open_images(DataConfig(source=str(folder), size=16, in_memory=False))
    memory = open_images(DataConfig(source=str(folder), size=16))
    samples = [(3, 0), (0, 5), (5, 1)]
    assert len(disk) == len(memory) == 6
    assert disk.classes == memory.classes == ("ape", "cat")
    first, second = disk.batch(samples, seed=0), memory.batch(samples, seed=0)
    assert torch.equal(first["image"], second["image"])
    assert torch.equal(first["label"], second["label"])
    assert not first["is_substitute"].any()
    loaded = disk.load()
    assert torch.equal(loaded.images, memory.images)
    before = disk.fingerprint
    gradient(99, 30).save(folder / "ape" / "new.png")
    assert PictureSet(FolderPictures(folder), size=16).fingerprint != before


def test_every_third_picture_is_held_out(folder: Path) -> None:
    whole = open_images(DataConfig(source=str(folder), size=16))
    for in_memory in (True, False):
        sides = {
            split: open_images(DataConfig(source=str(folder), size=16, in_memory=in_memory, split=split, hold_out=3))
            for split in ("train", "test")
        }
        assert [len(sides[split]) for split in ("train", "test")] == [4, 2]
        assert sides["train"].classes == sides["test"].classes == whole.classes
        assert sides["train"].fingerprint != sides["test"].fingerprint
        for split, places in (("train", [1, 2, 4, 5]), ("test", [0, 3])):
            batch = sides[split].batch([(index, 0) for index in range(len(places))], seed=0)
            assert torch.equal(batch["image"], whole.images[places])
            assert torch.equal(batch["label"], whole.labels[places])


def test_augmentation_depends_on_seed_epoch_and_index_alone(folder: Path) -> None:
    config = DataConfig(source=str(folder), size=16, in_memory=False, crop="random", flip=True)
    data = open_images(config)
    whole = data.batch([(2, 1), (4, 0)], seed=7)["image"]
    assert torch.equal(open_images(config).batch([(4, 0)], seed=7)["image"][0], whole[1])
    others = [data.batch([(2, epoch)], seed=seed)["image"][0] for epoch, seed in ((2, 7), (3, 7), (1, 8), (1, 9))]
    assert not all(torch.equal(whole[0], other) for other in others)
    mirrored = [bool(data.batch([(0, epoch)], seed=0)["image"][0, 0, 8].diff().mean() < 0) for epoch in range(40)]
    assert 8 < sum(mirrored) < 32
    stream = SampleStream(data, batch_size=4, seed=3)
    alone = list(stream_batches(stream, range(2)))
    workers = list(stream_batches(stream, range(2), num_workers=2))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(alone, workers, strict=True))


def test_random_crops_keep_at_least_their_part_and_reach_the_corners() -> None:
    """On a picture whose colors are its coordinates a crop tells where it lies and how much it shows."""
    picture, shown, corners = gradient(25, 20), set(), set()
    for seed in range(200):
        crop = np.asarray(random_crop(picture, 16, np.random.default_rng(seed))).astype(float)
        assert crop.shape == (16, 16, 3)
        # 16 of 16 to 20 pixels of the short side of 20: 20 to 16 rows.
        shown.add(round(crop[:, 8, 1].max() - crop[:, 8, 1].min()) + 1)
        corners.add((crop[0, 0, 1] < 1, crop[-1, 0, 1] > 18, crop[0, 0, 0] < 1, crop[0, -1, 0] > 23))
    assert min(shown) == 16
    assert max(shown) in (19, 20)
    assert any(top for top, *_ in corners)
    assert any(right for *_, right in corners)
    assert not all(left for _, _, left, _ in corners)


def test_random_crops_halve_large_pictures_by_box_first() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    crop = np.asarray(random_crop(board, 16, np.random.default_rng(0)))
    assert set(np.unique(crop)) <= {127, 128}


def test_broken_pictures_are_skipped_counted_and_named(folder: Path, caplog) -> None:
    (folder / "cat" / "1.png").write_bytes(b"no picture")
    data = open_images(DataConfig(source=str(folder), size=16, in_memory=False))
    assert isinstance(data, PictureSet)
    # Sorted: ape/4, ape/5, cat/0, cat/1, ...
    with caplog.at_level(logging.WARNING):
        batch = data.batch([(2, 0), (3, 0), (3, 1), (4, 0)], seed=0)
    assert batch["is_substitute"].tolist() == [False, True, True, False]
    assert torch.equal(batch["image"][1], batch["image"][3])
    assert list(data.broken) == [3]
    assert "1.png' cannot be read" in data.broken[3]
    assert [record.message for record in caplog.records] == [f"skipped (1 so far): {data.broken[3]}"]
    assert len(data.load()) == 5
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"6 pictures in a row from number 1 on cannot be read; the last: image '.*4\.png'"
    ):
        data.batch([(1, 0)], seed=0)


def test_ten_crops_in_order() -> None:
    """At 30 pixels the enlarged crop has 33: corners, floored center, and the same places of the mirror image."""
    picture = gradient(33, 33)
    views = picture_views(picture, 30, "ten_crop")
    assert views.shape == (10, 3, 30, 30)
    corner = ((views[:, :2, 0, 0] + 1) * 127.5).round().int().tolist()
    assert corner[:4] == [[0, 0], [3, 0], [0, 3], [3, 3]]
    middle = corner[4][0]
    assert corner[4] == [middle, middle]
    assert middle in (1, 2)
    for index, twin in ((5, 1), (6, 0), (7, 3), (8, 2)):
        assert torch.equal(views[index], views[twin].flip(-1))
    assert not torch.equal(views[9], views[4].flip(-1))
    flips = picture_views(picture, 30, "flips")
    assert torch.equal(flips[0], to_tensor(center_crop(picture, 30)))
    assert torch.equal(flips[1], flips[0].flip(-1))
    with pytest.raises(ValueError, match="views is 'all', expected 'center', 'flips' or 'ten_crop'"):
        picture_views(picture, 30, "all")  # type: ignore[arg-type]


def test_refusals(folder: Path) -> None:
    with pytest.raises(ValueError, match="need the pictures themselves: set in_memory=False"):
        open_images(DataConfig(source=str(folder), flip=True))
    with pytest.raises(ValueError, match="only in memory: set in_memory=True"):
        open_images(DataConfig(in_memory=False))
    with pytest.raises(ValueError, match="hold_out is 3, but 'digits' is not divided that way: leave it at 0"):
        open_images(DataConfig(hold_out=3))
    with pytest.raises(ValueError, match="hold_out is 1 for 6 pictures, expected at least 2"):
        open_images(DataConfig(source=str(folder), hold_out=1))
    with pytest.raises(ValueError, match="split is 'val', expected 'train' or 'test'"):
        SplitPictures(FolderPictures(folder), split="val", hold_out=2)
    for changes, message in (
        ({"crop": "left"}, "crop is 'left'"),
        ({"min_crop": 0.0}, r"min_crop is 0\.0, expected above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PictureSet(FolderPictures(folder), size=8, **changes)
