from __future__ import annotations

import pytest
import torch

from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.data.videos.moving_digits import bounce, moving_digits


def test_paths_are_those_of_a_ball_between_walls() -> None:
    """Against a simulation step by step, in steps so small that each meets one wall at most."""
    rng = torch.Generator().manual_seed(0)
    start = torch.rand(6, 2, generator=rng, dtype=torch.float64) * 10
    velocity = torch.randn(6, 2, generator=rng, dtype=torch.float64) * 4
    found = bounce(start, velocity, 12, 10.0)
    position, speed = start.clone(), velocity.clone() / 50
    for frame in range(12):
        torch.testing.assert_close(found[:, frame], position, rtol=0, atol=1e-9)
        for _ in range(50):
            position = position + speed
            out = (position < 0) | (position > 10)
            speed = torch.where(out, -speed, speed)
            position = torch.where(position < 0, -position, torch.where(position > 10, 20 - position, position))


def test_clips_show_whole_digits_that_move() -> None:
    clips = moving_digits("train", 20, num_frames=6)
    assert clips.videos.shape == (20, 3, 6, 32, 32)
    assert clips.videos.dtype == torch.uint8
    assert clips.labels.tolist() == [k % 10 for k in range(20)]
    assert clips.classes == tuple(str(k) for k in range(10))
    ink = clips.videos[:, 0].double()
    total = ink.sum(dim=(2, 3))
    # The digit keeps its ink wherever it is: nothing is cut off at the edges.
    assert float(((total - total[:, :1]).abs() / total[:, :1]).max()) < 0.06
    places = torch.arange(32).double()
    rows, columns = (ink.sum(dim=3) @ places / total), (ink.sum(dim=2) @ places / total)
    steps = torch.stack([rows.diff(dim=1), columns.diff(dim=1)]).norm(dim=0)
    assert float(steps.max()) < 2.7
    first = torch.stack([rows.diff(dim=1)[:, 0], columns.diff(dim=1)[:, 0]])
    free = steps[:, 0] > 0.95
    down, right = (first[axis] > 0 for axis in (0, 1))
    clear = free & (first.abs().min(dim=0).values > 0.3)
    assert torch.equal(clips.directions[clear], (2 * down.long() + right.long())[clear])


def test_larger_digits_stay_inside_smaller_frames() -> None:
    small, large = (
        moving_digits("train", 20, num_frames=40, size=24, digit_size=side).videos[:, 0].double() for side in (8, 16)
    )
    # Four times the ink, and none of it lost at the edges.
    totals = large.sum(dim=(2, 3))
    torch.testing.assert_close(
        totals.mean(dim=1) / small.sum(dim=(2, 3)).mean(dim=1), torch.full((20,), 4.0).double(), rtol=0.1, atol=0
    )
    assert float(((totals - totals[:, :1]).abs() / totals[:, :1]).max()) < 0.06
    centers = large.sum(dim=3) @ torch.arange(24).double() / totals
    # Digits are not symmetric, but the same all the way: what a center travels is what the digit does, at most 8 pixels.
    travelled = centers.amax(dim=1) - centers.amin(dim=1)
    assert 6 < float(travelled.max()) < 8.3


def test_a_seed_repeats_and_splits_share_nothing() -> None:
    first, again = (moving_digits("train", 10, num_frames=2, seed=1) for _ in range(2))
    assert torch.equal(first.videos, again.videos)
    assert first.fingerprint == again.fingerprint
    for other in (moving_digits("train", 10, num_frames=2, seed=2), moving_digits("test", 10, num_frames=2, seed=1)):
        assert not torch.equal(first.videos, other.videos)
    longer = moving_digits("train", 10, num_frames=4, seed=1)
    assert torch.equal(longer.videos[:, :, :2], first.videos)


def test_frames_are_a_source_of_images(monkeypatch) -> None:
    monkeypatch.setattr("hiergen.data.sources.NUM_CLIPS", 10)
    images = open_images(DataConfig(source="moving-digits", size=16))
    assert images.images.shape == (80, 3, 16, 16)
    assert images.labels[:9].tolist() == [0] * 8 + [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev", 10), "split is 'dev', expected 'train' or 'test'"),
        (("train", 0), "num_clips is 0, expected at least 1"),
    ],
)
def test_bad_requests_are_explained(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        moving_digits(*arguments)
    for size in (14, 17):
        with pytest.raises(ValueError, match=f"size is {size}, expected an even number of at least 16"):
            moving_digits("train", 1, size=size)
    for side in (7, 33):
        with pytest.raises(ValueError, match=f"digit_size is {side}, expected 8 to size, 32"):
            moving_digits("train", 1, digit_size=side)
    with pytest.raises(ValueError, match="num_frames is 0"):
        moving_digits("train", 1, num_frames=0)
