from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.images import files as module
from hiergen.data.images.digits import load_digits
from hiergen.data.images.files import list_images, read_image
from hiergen.data.images.in_memory import load_folder
from hiergen.data.images.pixels import center_crop, to_pictures, to_tensor, to_uint8
from hiergen.data.sources import DataConfig, open_images


def test_digits_are_real_balanced_and_split_without_overlap() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape == (1442, 3, 32, 32)
    assert float(train.images.min()) == -1
    assert float(train.images.max()) == 1
    assert torch.bincount(test.labels).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    distances = torch.cdist(test.images[:, 0].flatten(1), train.images[:, 0].flatten(1))
    assert float(distances.min()) > 0
    assert train.fingerprint != test.fingerprint
    with pytest.raises(ValueError, match="split is 'val'"):
        load_digits("val")
    with pytest.raises(ValueError, match="size is 4, expected at least 8"):
        load_digits("train", size=4)


def test_center_crop_takes_the_middle_and_keeps_the_aspect() -> None:
    pixels = np.zeros((40, 100, 3), dtype=np.uint8)
    pixels[:, 30:70] = 255
    crop = np.asarray(center_crop(Image.fromarray(pixels), 20))
    assert crop.shape == (20, 20, 3)
    assert crop.min() == 255


def test_center_crop_halves_by_box_first() -> None:
    """A checkerboard becomes grey when averaged, while bicubic alone from 8 to 2 would alias differently."""
    board = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    crop = np.asarray(center_crop(Image.fromarray(board).convert("RGB"), 2))
    assert np.all(np.abs(crop.astype(int) - 128) <= 1)


def test_uint8_round_trip_is_exact() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    assert torch.equal(to_uint8(to_tensor(picture)), pixels)
    assert np.array_equal(np.asarray(to_pictures(to_tensor(picture)[None])[0]), np.asarray(picture))
    assert to_uint8(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0, 255]


def test_a_folder_is_read_with_classes(tmp_path) -> None:
    for name in ("b/2.png", "a/1.png", "b/1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 9), (255, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    folder = load_folder(tmp_path, size=8)
    assert folder.classes == ("a", "b")
    assert folder.labels.tolist() == [0, 1, 1]
    assert folder.images.shape == (3, 3, 8, 8)
    assert open_images(DataConfig(source=str(tmp_path), size=8)).fingerprint == folder.fingerprint
    batch = folder.batch([(2, 0), (0, 5)], seed=0)
    assert batch["label"].tolist() == [1, 0]


def test_bad_pictures_are_named(tmp_path, monkeypatch) -> None:
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png", "missing.png"):
        with pytest.raises(ValueError, match=f"image '.*{name}' cannot be read"):
            read_image(tmp_path / name)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="64x64 pixels, at most 1,000 are read"):
        read_image(whole)
    with pytest.raises(ValueError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        list_images(tmp_path / "empty")
