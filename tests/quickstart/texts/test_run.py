"""The text quickstart, so short that nothing is learned: every number is measured and every file is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import hiergen
from hiergen.data.text.dataset import TextSet
from hiergen.data.text.sources import Documents
from hiergen.evaluation.texts.scores import bits_per_byte, count_operations
from hiergen.generators.sequences.settings import TextSettings
from hiergen.quickstart.settings import TextQuickstartSettings
from hiergen.quickstart.texts import run as texts
from hiergen.quickstart.texts.report import text_markdown
from hiergen.quickstart.texts.run import equal_samples, run_text_quickstart
from hiergen.registry import create

MODELS = ("flat-mamba-tiny", "block-tiny", "hnet-tiny")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    settings = TextQuickstartSettings(
        out=str(tmp_path_factory.mktemp("quickstart")), samples_seen=16, length=64, models=MODELS
    )
    some = Documents(("a", "b"), (b"The first text, of some words. " * 9, b"Another one: it is short. " * 7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hiergen.data.text.dataset.open_documents", lambda config: some)
        patch.setattr(texts, "SAMPLING", TextSettings(max_new_bytes=5))
        yield settings, run_text_quickstart(settings), patch


def test_everything_that_is_promised_is_written(finished) -> None:
    settings, report, _ = finished
    out = Path(settings.out)
    for name in ("chunks.png", "chunks_hnet-tiny.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    page = (out / "report.md").read_text()
    assert page == text_markdown(report)
    assert all(f"### {name}" in page for name in MODELS)
    assert isinstance(hiergen.from_pretrained(out / "block-tiny" / "model").generate_text("a")[0], bytes)


def test_the_numbers_are_of_models_that_learned_nothing(finished) -> None:
    settings, report, _ = finished
    assert all(4 < row["bits_per_byte"] < 9 for row in report["rows"].values())
    assert list(report["rows"]["hnet-tiny"]["log"]) == ["compression_0"]
    work = {name: row["train_bytes"] * row["operations_at_start"] for name, row in report["rows"].items()}
    assert max(work.values()) < 2 * min(work.values())
    assert 0 <= report["words"]["hnet-tiny"]["chunks"] <= 1
    assert equal_samples(settings, dict(zip(MODELS, (10, 5, 20), strict=True))) == dict(
        zip(MODELS, (16, 32, 8), strict=True)
    )


def test_running_again_trains_nothing_and_repeats_the_report(finished) -> None:
    settings, report, _ = finished
    again = run_text_quickstart(settings)
    drop: Any = lambda found: {name: value for name, value in found.items() if name != "seconds"}  # noqa: E731
    assert drop(again) == drop(report)


def test_filling_is_not_scored() -> None:
    """A model of blocks predicts more ends of a text than there are; they are the easiest of all."""
    model = create("block-tiny", dim=32, depth=1, num_heads=2, token_dim=16, token_depth=1, token_heads=2)
    documents = Documents(("a",), (b"abcd",))
    filled = TextSet(documents, length=8, multiple=4)
    assert filled.batch([(0, 0)], seed=0)["ids"].tolist()[0][-2:] == [255, 255]
    with torch.no_grad():
        logits = model.eval()(filled.batch([(0, 0)], seed=0)["ids"][:, :-1])[0].log_softmax(-1)
    wanted = -sum(logits[t, token] for t, token in enumerate([*b"abcd", 255])) / 5 / torch.log(torch.tensor(2.0))
    assert bits_per_byte(model, filled) == pytest.approx(float(wanted), rel=1e-5)
    assert count_operations(model, filled) > 8 * 16 * 256


def test_bad_settings_are_named() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("length is 18, expected a multiple of 4", {"length": 18}),
        ("models is empty", {"models": ()}),
        ("preset 'har-tiny' is a LevelAR, expected a model of text as bytes", {"models": ("har-tiny",)}),
        ("preset 'block-5m' is a BlockTransformer, expected a model", {"models": ("block-5m",)}),
        ("samples_seen is 7, expected at least 8", {"samples_seen": 7}),
    ]
    for match, changes in cases:
        with pytest.raises(ValueError, match=match):
            TextQuickstartSettings(**changes)
