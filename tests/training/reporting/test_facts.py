"""What a run leaves in its model's folder for a card: data, budget, names of classes."""

from __future__ import annotations

from pathlib import Path

import kinds
import pytest
import toy
from PIL import Image

from hiergen.data.codes import name_data
from hiergen.data.config import DataConfig
from hiergen.pipelines.card import CARD, told
from hiergen.pipelines.loading import from_pretrained
from hiergen.training.loop import fit
from hiergen.training.reporting.facts import name_source
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/ada/my pictures/", "`my pictures`"),
        ("clips:videos/cats", "`clips:cats`"),
        ("hf:owner/set", "`hf:set`"),
        (
            "digits",
            "scikit-learn's handwritten digits (UCI Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, CC BY 4.0)",
        ),
    ],
)
def test_of_a_path_the_last_part_is_told(source: str, name: str) -> None:
    assert name_source(source) == name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on three pictures of two classes."""
    folder = tmp_path_factory.mktemp("facts")
    for number, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png")):
        path = folder / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (90 * number, 0, 0)).save(path)
    task = TokenizerTaskConfig(overrides=kinds.RESTOK, data=DataConfig(source=str(folder / "pets")))
    fit(toy.toy_run(str(folder / "tokens"), task=task, samples=8))
    return folder


def test_a_trained_model_has_a_card_that_names_data_and_budget(run) -> None:
    card = run / "tokens" / "model" / CARD
    model = from_pretrained(run / "tokens" / "model")
    expected = (
        "preset `restok-tiny`; 3 images at 32 x 32 pixels of 2 classes from `pets`; 8 samples seen in batches of "
    )
    assert told(model).startswith(expected)
    text = card.read_text()
    assert f"- tokenizer: {expected}" in text
    assert str(run) not in text
    # What a person wrote stays when the finished run is run again.
    card.write_text("# Mine\n")
    task = TokenizerTaskConfig(overrides=kinds.RESTOK, data=DataConfig(source=str(run / "pets")))
    fit(toy.toy_run(str(run / "tokens"), task=task, samples=8))
    assert card.read_text() == "# Mine\n"


def test_a_generator_tells_of_its_cache(tmp_path) -> None:
    fit(toy.toy_run(str(tmp_path / "run"), task=kinds.generator("har-tiny", dim=20, depth=1)(tmp_path), samples=8))
    generator = from_pretrained(tmp_path / "run" / "model")
    assert told(generator).startswith(
        "preset `har-tiny`; 10 encoded samples of 10 classes from `codes`; 8 samples seen"
    )
    # What `hiergen encode` notes goes before the cache's own name.
    name_data(tmp_path / "codes", "`pictures`")
    fit(
        toy.toy_run(
            str(tmp_path / "named"),
            task=GeneratorTaskConfig("har-tiny", {"dim": 20, "depth": 1}, str(tmp_path / "codes")),
            samples=8,
        )
    )
    assert "10 encoded samples of 10 classes from `pictures`; 8" in told(from_pretrained(tmp_path / "named" / "model"))
    assert "0. 0\n1. 1\n" in (tmp_path / "run" / "model" / CARD).read_text()
