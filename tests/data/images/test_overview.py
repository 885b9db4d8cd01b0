"""What a set of pictures says of itself, and examples of all of its classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from hiergen.data.codes import CodeSet
from hiergen.data.config import DataConfig
from hiergen.data.images.digits import load_digits
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.overview import describe_images, spread_over_classes
from hiergen.data.sources import open_images
from hiergen.pyramid import LevelSpec


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, count, size in (("cats", 5, (48, 32)), ("dogs", 2, (64, 80))):
        (tmp_path / name).mkdir()
        for k in range(count):
            Image.new("RGB", size, (k, 0, 0)).save(tmp_path / name / f"{k}.png")
    return tmp_path


FEW = "; 7 pictures: a model will learn so few by heart"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ", 48x32 to 64x80 pixels, resized to 16x16 and cropped to the center"),
        ({"in_memory": False}, ", 48x32 to 64x80 pixels, resized to 16x16 and cropped to the center"),
        (
            {"in_memory": False, "crop": "random", "flip": True},
            ", 48x32 to 64x80 pixels, resized to 16x16, cropped at random and mirrored at random",
        ),
    ],
)
def test_a_folder_says_what_was_found_and_what_is_done(pictures: Path, changes: dict, said: str) -> None:
    found = open_images(DataConfig(source=str(pictures), size=16, **changes))
    assert describe_images(found) == f"7 pictures of 2 classes (cats 5, dogs 2){said}{FEW}"


def test_one_side_of_a_split_and_pictures_that_cannot_be_read(pictures: Path) -> None:
    (pictures / "dogs" / "0.png").write_text("no picture")
    config = DataConfig(source=str(pictures), size=16, in_memory=False, hold_out=7)
    assert describe_images(open_images(config)).startswith("6 pictures of 2 classes (cats 4, dogs 2), 48x32 to 64x80 ")


def test_what_is_left_as_it_is_and_what_has_no_names() -> None:
    digits = load_digits("train", size=32)
    assert describe_images(digits) == (
        "1,442 pictures of 10 classes (0 143, 1 146, 2 142, 3 147, 4 145, 5 146, ...), 32x32 pixels"
    )
    one = ImageSet(torch.zeros(200, 3, 8, 8), torch.zeros(200, dtype=torch.long), ("",))
    assert describe_images(one) == "200 pictures of 1 class, 8x8 pixels"
    squares = dataclasses.replace(one, sizes=((8, 8), (16, 16)))
    assert describe_images(squares) == "200 pictures of 1 class, 8x8 to 16x16 pixels, resized to 8x8"
    single = dataclasses.replace(one, images=one.images[:1], labels=one.labels[:1])
    assert describe_images(single) == "1 picture of 1 class, 8x8 pixels; 1 picture: a model will learn so few by heart"


def test_data_of_another_kind_are_counted() -> None:
    codes = CodeSet(
        (torch.zeros(3, 1, 4, dtype=torch.int16),),
        torch.zeros(3, dtype=torch.long),
        (LevelSpec(4, vocab_size=2),),
        ("",),
        "x",
    )
    assert describe_images(codes) == "3 samples"


def test_of_many_pictures_an_even_spread_is_looked_at(tmp_path: Path) -> None:
    for k in range(201):
        Image.new("L", (20, 20)).save(tmp_path / f"{k:03d}.png")
    found = open_images(DataConfig(source=str(tmp_path), size=10, in_memory=False))
    assert describe_images(found) == "201 pictures of 1 class, 20x20 pixels (of 200 looked at), resized to 10x10"


def test_a_choice_shows_every_class() -> None:
    sorted_labels = [0] * 90 + [1] * 6 + [2] * 4
    assert spread_over_classes(sorted_labels, 6) == [0, 45, 90, 93, 96, 98]
    # One each where there are no more, of an even spread of the classes where there are fewer.
    assert spread_over_classes(sorted_labels, 3) == [0, 90, 96]
    assert spread_over_classes(sorted_labels, 2) == [0, 90]
    # Of a class that runs out the others have the rest.
    assert spread_over_classes([0, 1, 1, 1, 1], 4) == [0, 1, 2, 3]
    assert spread_over_classes([1, 0], 10) == [0, 1]
    assert spread_over_classes([3] * 8, 4) == [0, 2, 4, 6]
