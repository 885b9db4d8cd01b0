"""The emoji that come with the package."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from hiergen.data.config import DataConfig
from hiergen.data.embedded.emoji import EMOJI_GROUPS, FILE, load_emoji
from hiergen.data.images.archives import NpzPictures
from hiergen.data.sources import open_images
from hiergen.metrics.classifiers import LabelClassifier


@pytest.fixture(scope="module")
def emoji():
    return load_emoji("train"), load_emoji("test")


def test_emoji_are_small_pictures_in_color_of_eight_groups(emoji) -> None:
    assert FILE.stat().st_size < 5 * 2**20
    for images in emoji:
        assert images.images.shape[1:] == (3, 32, 32)
        assert images.classes == EMOJI_GROUPS == NpzPictures(FILE).classes
        assert images.labels.unique().tolist() == list(range(8))
        assert images.images.amin() >= -1
        # On white.
        assert (images.images[:, :, 0, 0] == 1).double().mean() > 0.95
    assert sum(map(len, emoji)) == 3222
    assert 0.07 < len(emoji[1]) / 3222 < 0.13


def test_no_emoji_is_on_both_sides(emoji) -> None:
    train, test = ({hashlib.sha256(image.numpy().tobytes()).digest() for image in side.images} for side in emoji)
    # Noto draws a few emoji of different names alike.
    assert len(train & test) / len(test) < 0.01
    by_name = NpzPictures(FILE).names
    things = [name.partition("/")[2] for name in by_name]
    assert len(set(things)) < len(things)
    assert {name.partition("/")[0] for name in by_name} == {"noto", "fluent-flat"}


def test_other_sizes_are_of_the_same_pictures(emoji) -> None:
    small = open_images(DataConfig(source="emoji", split="test", size=16))
    expected = torch.nn.functional.avg_pool2d(emoji[1].images, 2)
    assert small.images.shape == expected.shape
    assert (small.images - expected).abs().mean() < 0.05
    assert math.isclose(float(small.images.max()), 1.0)


def test_they_are_only_in_memory_and_have_a_split_of_their_own() -> None:
    with pytest.raises(ValueError, match="embedded pictures and frames of clips are only in memory"):
        open_images(DataConfig(source="emoji", in_memory=False))
    with pytest.raises(ValueError, match="hold_out is 5, but 'emoji' is not divided that way"):
        open_images(DataConfig(source="emoji", hold_out=5))
    with pytest.raises(ValueError, match="split is 'val', expected 'train' or 'test'"):
        load_emoji("val")


def test_a_judge_in_color_sees_what_a_gray_one_cannot() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    images = torch.randint(0, 60, (60, 3, 16, 16), generator=rng)
    # Red or blue, equally bright.
    images[torch.arange(60), labels * 2] += 120
    images = images.to(torch.uint8)
    accuracy = {
        in_color: LabelClassifier(images[:40], labels[:40], in_color=in_color).accuracy(images[40:], labels[40:])
        for in_color in (True, False)
    }
    assert accuracy[True] == 1.0
    assert accuracy[False] < 0.9
