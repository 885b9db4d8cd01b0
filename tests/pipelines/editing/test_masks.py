from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.pipelines.editing.masks import fill_holes, place, read_masks, soften


def left_half(size: int = 8) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[:, : size // 2] = True
    return mask


@pytest.mark.parametrize(
    "given",
    [
        left_half(),
        left_half().astype(np.float32),
        left_half().astype(np.uint8) * 255,
        torch.from_numpy(left_half())[None],
        torch.from_numpy(left_half())[None, None].float(),
        Image.fromarray(left_half()),
        Image.fromarray(left_half(32).astype(np.uint8) * 255).convert("RGB"),
        [Image.fromarray(np.pad(left_half(8), ((2, 2), (0, 0)), mode="edge"))],
    ],
    ids=["bool", "float", "uint8", "batch", "channel", "picture", "larger picture", "tall picture"],
)
def test_a_mask_of_any_kind_shows_the_same_pixels(given) -> None:
    found = read_masks(given, 8, 3)
    assert found.dtype == torch.bool
    assert torch.equal(found, torch.from_numpy(left_half()).expand(3, 8, 8))


@pytest.mark.parametrize(
    ("given", "count", "kind", "said"),
    [
        (
            np.zeros((2, 8, 8), bool),
            3,
            ValueError,
            "mask_image holds 2 masks, expected one for all, or 3, one per image",
        ),
        (
            np.full((8, 8), 2.0),
            1,
            ValueError,
            r"mask_image spans 2 to 2, expected booleans, floats in \[0, 1\] or uint8",
        ),
        (np.full((8, 8), np.nan), 1, ValueError, "mask_image spans nan to nan"),
        (np.zeros((8, 8), np.int64), 1, TypeError, "mask_image is of int64, expected booleans"),
        (torch.zeros(8, dtype=torch.bool), 1, ValueError, r"mask_image has shape \(8,\), expected \(h, w\)"),
        (np.zeros((0, 8, 8), bool), 1, ValueError, r"mask_image has shape \(0, 8, 8\)"),
        ("a.png", 1, TypeError, "mask_image holds a str, expected PIL pictures, arrays or tensors"),
    ],
)
def test_a_bad_mask_is_named(given, count, kind, said) -> None:
    with pytest.raises(kind, match=said):
        read_masks(given, 8, count)


def test_the_seam_is_whole_inside_and_gone_two_feathers_outside() -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 12:20, 12:20] = True
    soft = soften(mask, 3)[0, 0]
    assert bool((soft[mask[0]] == 1).all())
    row = soft[16, 20:]
    assert torch.equal(row.sort(descending=True).values, row)
    assert 0 < float(row[5]) < float(row[0]) < 1
    assert float(row[6:].max()) == 0
    assert torch.equal(soften(mask, 0)[0, 0], mask[0].float())
    # A mask at the border of the picture stays whole there.
    mask[:] = False
    mask[:, :, :8] = True
    assert bool((soften(mask, 3)[0, 0][mask[0]] == 1).all())


def test_a_hole_is_filled_from_around_it_alone() -> None:
    images = torch.linspace(-1, 1, 24).expand(1, 3, 24, 24).clone()
    mask = torch.zeros(1, 24, 24, dtype=torch.bool)
    mask[:, 6:17, 7:19] = True
    filled = fill_holes(images, mask)
    assert torch.equal(filled[:, :, ~mask[0]], images[:, :, ~mask[0]])
    # A ramp is continued as one, roughly.
    assert float((filled - images).abs().max()) < 0.5
    assert float(filled.min()) >= -1
    assert float(filled.max()) <= 1
    noisy = torch.where(mask[:, None], torch.randn_like(images), images)
    assert torch.equal(fill_holes(noisy, mask), filled)
    assert torch.equal(fill_holes(images, torch.ones_like(mask)), torch.zeros_like(images))
    assert torch.equal(fill_holes(images, torch.zeros_like(mask)), images)


def test_pictures_move_and_shrink_on_their_canvas() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    moved, masks = place(images, shift=(4, -2))
    assert torch.equal(moved[:, :, :14, 4:], images[:, :, 2:, :12])
    assert bool(masks[:, 14:].all())
    assert bool(masks[:, :, :4].all())
    assert not bool(masks[:, :14, 4:].any())
    assert bool((moved.movedim(1, -1)[masks] == 0).all())
    small, masks = place(torch.full_like(images, 0.5), scale=0.5)
    torch.testing.assert_close(small[:, :, 4:12, 4:12], torch.full((2, 3, 8, 8), 0.5))
    assert int(masks[0].sum()) == 16 * 16 - 8 * 8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scale": 0.0}, "scale is 0.0, expected above 0 to 1"),
        ({"scale": 1.5}, "scale is 1.5, expected above 0 to 1"),
        ({"shift": (0, 16)}, r"shift is \(0, 16\), which leaves nothing of pictures of 16x16 pixels"),
        ({}, r"shift is \(0, 0\) and scale is 1.0: nothing is empty"),
    ],
)
def test_a_move_that_makes_no_sense_is_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        place(torch.zeros(1, 3, 16, 16), **options)
