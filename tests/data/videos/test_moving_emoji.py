from __future__ import annotations

import pytest
import torch

from hiergen.data.config import DataConfig
from hiergen.data.sources import open_captions, open_images
from hiergen.data.videos.moving_emoji import EMOJI, STYLES, drawings, moving_emoji


def test_clips_show_emoji_in_color_that_move_smoothly_and_end_where_they_began() -> None:
    clips = moving_emoji("train", 20, num_frames=16)
    assert clips.videos.shape == (20, 3, 16, 48, 48)
    assert clips.videos.dtype == torch.uint8
    assert clips.labels.tolist() == [k % 10 for k in range(20)]
    assert clips.classes == tuple(EMOJI)
    assert len(clips.classes) == 10
    # White all around, whole in every frame.
    edges = torch.cat([clips.videos[..., 0, :], clips.videos[..., -1, :], clips.videos[..., 0], clips.videos[..., -1]])
    assert float((edges > 250).double().mean()) > 0.97
    assert float((255 - clips.videos.amin(dim=1)).double().flatten(2).amax(dim=2).min()) > 100
    frames = clips.videos.double()
    steps = (frames - frames.roll(1, dims=2)).abs().mean(dim=(1, 3, 4))
    assert float(steps.min()) > 0
    # From the last frame to the first is a step like any other.
    assert float(steps[:, 0].mean()) < 1.2 * float(steps.mean())
    assert float((steps[:, 0] / steps.amax(dim=1)).max()) <= 1


def test_an_emoji_starts_to_where_its_direction_says() -> None:
    clips = moving_emoji("train", 40, num_frames=16)
    ink = 255 - clips.videos.amin(dim=1).double()
    total, places = ink.sum(dim=(2, 3)), torch.arange(48).double()
    moves = [(ink.sum(dim=axis) @ places / total)[:, :2].diff(dim=1)[:, 0] for axis in (3, 2)]
    down, right = (move > 0 for move in moves)
    clear = torch.stack(moves).abs().min(dim=0).values > 0.3
    assert int(clear.sum()) > 10
    assert torch.equal(clips.directions[clear], (2 * down.long() + right.long())[clear])


def test_splits_share_no_drawing_and_every_class_has_its_own() -> None:
    every = {name: (drawings(name, "train"), drawings(name, "test")) for name in EMOJI}
    for name, (train, test) in every.items():
        assert len(train) == len(EMOJI[name]) * len(STYLES) - 1
        assert test.shape == (1, 3, 32, 32)
        # On white in the corners, and something else within.
        assert float(test[..., 0, 0].min()) > 0.95
        assert float(test.amin(dim=1).min()) < 0
    pictures = torch.cat([part for pair in every.values() for part in pair]).flatten(1)
    distances = torch.cdist(pictures, pictures).fill_diagonal_(torch.inf)
    assert float(distances.min()) > 1


def test_a_seed_repeats_and_longer_clips_are_the_same_way_slower() -> None:
    first, again = (moving_emoji("train", 10, num_frames=2, seed=1) for _ in range(2))
    assert torch.equal(first.videos, again.videos)
    assert first.fingerprint == again.fingerprint
    for other in (moving_emoji("train", 10, num_frames=2, seed=2), moving_emoji("test", 10, num_frames=2, seed=1)):
        assert not torch.equal(first.videos, other.videos)
    longer = moving_emoji("train", 10, num_frames=4, seed=1)
    assert torch.equal(longer.videos[:, :, ::2], first.videos)


def test_frames_are_a_source_of_images(monkeypatch) -> None:
    monkeypatch.setattr("hiergen.data.sources.NUM_CLIPS", 10)
    images = open_images(DataConfig(source="moving-emoji", size=16))
    assert images.images.shape == (40, 3, 16, 16)
    assert images.labels[:5].tolist() == [0] * 4 + [1]
    assert images.classes == tuple(EMOJI)
    with pytest.raises(ValueError, match="'moving-emoji' has none: leave them out"):
        open_captions(DataConfig(source="moving-emoji", captions=("a {class}",)))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("dev", 10), {}, "split is 'dev', expected 'train' or 'test'"),
        (("train", 0), {}, "num_clips is 0, expected at least 1"),
        (("train", 1), {"num_frames": 0}, "num_frames is 0, expected at least 1"),
        (("train", 1), {"size": 14}, "size is 14, expected an even number of at least 16"),
        (("train", 1), {"size": 17}, "size is 17, expected an even number of at least 16"),
    ],
)
def test_bad_requests_are_explained(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        moving_emoji(*arguments, **options)
