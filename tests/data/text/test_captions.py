from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from hiergen.data.codes import write_codes
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_captions
from hiergen.data.text.captioned import CaptionedCodes, caption_codes, text_entries
from hiergen.data.text.captions import describe_pictures, read_captions, read_folder_captions, write_captions
from hiergen.data.text.colors import main_color
from hiergen.data.text.config import CaptionConfig
from hiergen.pyramid import LevelSpec, TokenPyramid

SPECS = (LevelSpec(2, vocab_size=8),)
BYTES = CaptionConfig(num_tokens=3, dim=4, depth=0)


@pytest.fixture
def folder(tmp_path):
    for name in ("a/one.png", "b/two.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def codes(tmp_path):
    levels = torch.arange(6).reshape(3, 2)
    made = write_codes(
        tmp_path / "codes",
        lambda start, stop: ([TokenPyramid((levels,), SPECS)], torch.tensor([0, 1, 0])),
        num_samples=3,
        classes=["a", "b"],
        source="toy",
    )
    write_captions(tmp_path / "codes", [("a cat", "cats"), ("a dog",), ("a cat",)])
    return made, tmp_path / "codes"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "captions.jsonl",
            '{"file_name": "b/two.png", "text": ["two", "2"]}\n{"file_name": "a/one.png", "text": "one"}\n',
        ),
        ("metadata.csv", 'file_name,text\nb/two.png,"two"\na/one.png,one\n'),
    ],
)
def test_captions_of_a_folder_follow_its_pictures(folder, name, text) -> None:
    assert open_captions(DataConfig(source=str(folder))) == ()
    (folder / name).write_text(text)
    two = ("two", "2") if "jsonl" in name else ("two",)
    assert open_captions(DataConfig(source=str(folder))) == (("one",), two)
    assert open_captions(DataConfig(source=str(folder), split="test", hold_out=2)) == (("one",),)
    assert open_captions(DataConfig(source=str(folder), split="train", hold_out=2)) == (two,)
    config = DataConfig(source=str(folder), captions=("a {class}", "{text}!"))
    assert open_captions(config) == (("a a", "one!"), ("a b", "two!"))


def test_refusals_of_a_folders_captions(folder) -> None:
    path = folder / "captions.jsonl"
    path.write_text('{"file_name": "a/one.png", "text": "one"}\n')
    with pytest.raises(
        ValueError, match=r"the captions of '.*' have no row for 'b/two\.png', expected one per picture"
    ):
        open_captions(DataConfig(source=str(folder)))
    path.write_text('{"file_name": "a/one.png", "text": [""]}\n')
    with pytest.raises(ValueError, match=r"row 0 of '.*captions\.jsonl' has text \[''\], expected a text"):
        read_folder_captions(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"row 0 of '.*captions\.jsonl' is no JSON"):
        read_folder_captions(folder)
    with pytest.raises(ValueError, match=r"captions are \('a',\), but 'digits' has none: leave them out"):
        open_captions(DataConfig(captions=("a",)))
    assert open_captions(DataConfig(source="emoji")) == ()


def test_pictures_are_described_by_name_and_class() -> None:
    found = describe_pictures(
        ["noto/heart_eyes-cat", "noto/x"],
        ["Smileys/cat-face | fluent-flat", "plain"],
        ["{name}", "{group}, {subgroup}, {attribute}", "{subgroup}"],
    )
    assert found == (("heart eyes cat", "Smileys, cat face, fluent flat", "cat face"), ("x", "plain, plain, ", "plain"))
    with pytest.raises(
        ValueError, match=r"captions hold the field 'nam', expected some of class, group, .*did you mean"
    ):
        describe_pictures(["x"], ["y"], ["{nam}"])


def test_pictures_are_described_by_their_main_color(folder) -> None:
    picture = Image.new("RGB", (8, 8), "white")
    picture.paste((20, 60, 220), (1, 1, 5, 5))
    picture.save(folder / "a/one.png")
    config = DataConfig(source=str(folder), captions=("{color} {class}", "{class}"), size=8)
    assert open_captions(config) == (("blue a", "a"), ("black b", "b"))
    found = describe_pictures(["blue_heart", "heart"], ["x", "x"], ["{color} {name}"], colors=["blue", "red"])
    assert found == (("blue heart",), ("red heart",))


@pytest.mark.parametrize(
    ("rgb", "color"),
    [
        ((255, 0, 0), "red"),
        ((221, 46, 68), "red"),
        ((255, 0, 20), "red"),
        ((255, 165, 0), "orange"),
        ((255, 220, 50), "yellow"),
        ((0, 128, 0), "green"),
        ((0, 0, 255), "blue"),
        ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"),
        ((255, 192, 203), "pink"),
        ((139, 69, 19), "brown"),
        ((193, 105, 79), "brown"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "gray"),
        ((255, 255, 255), "white"),
    ],
)
def test_the_terms_of_colors(rgb, color) -> None:
    assert main_color((torch.tensor(rgb) / 127.5 - 1)[:, None, None].expand(3, 6, 6)) == color


def test_the_background_has_no_say_in_the_main_color() -> None:
    picture = torch.tensor([-1.0, 1.0, -1.0])[:, None, None].repeat(1, 8, 8)
    picture[:, 2:4, 2:4] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    assert main_color(picture) == "red"
    picture[:, 0, 0] = 1.0  # the corners differ, so nothing is background
    assert main_color(picture) == "green"
    with pytest.raises(ValueError, match=r"image has shape \(1, 8, 8\), expected \(3, height, width\)"):
        main_color(picture[:1])


def test_each_visit_draws_one_of_a_samples_captions(codes) -> None:
    made, folder = codes
    captioned = caption_codes(made, folder, BYTES)
    assert isinstance(captioned, CaptionedCodes)
    assert len(captioned.texts) == 3
    batches = [captioned.batch([(0, epoch), (1, epoch)], seed=0) for epoch in range(20)]
    assert {int(batch["text_mask"][0].sum()) for batch in batches} == {1, 2}
    assert all(torch.equal(batch["text"][1], captioned.texts.features[2]) for batch in batches)
    assert torch.equal(batches[3]["text"], captioned.batch([(0, 3), (1, 3)], seed=0)["text"])
    assert torch.equal(batches[0]["level_0"], made.batch([(0, 0), (1, 0)], seed=0)["level_0"])
    before = captioned.content()
    write_captions(folder, [("a cat", "kitten"), ("a dog",), ("a cat",)])
    assert caption_codes(made, folder, BYTES).content() != before


def test_refusals_of_a_caches_captions(codes) -> None:
    made, folder = codes
    (folder / "captions.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"captions\.jsonl' has 1 rows, expected 3, one per sample of the cache"):
        read_captions(folder, 3)
    (folder / "captions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds no captions\.jsonl: encode data that have captions, or describe them"):
        caption_codes(made, folder, BYTES)


def test_entries_of_the_generator() -> None:
    expected = {"num_classes": None, "text_shape": [3, 4], "text_encoder": {"name": "bytes", "depth": 0}}
    assert text_entries(BYTES) == expected
