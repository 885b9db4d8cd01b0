from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from hiergen.data.images.pixels import center_crop, to_pictures, to_tensor, to_uint8


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
