from __future__ import annotations

import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hiergen.data.config import DataConfig
from hiergen.evaluation.features.extractors import EXTRACTORS, Extractor
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.pipelines.image import TextToImagePipeline
from hiergen.pretrained.perceptual import LPIPS
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "measure_words.py"
SIZES = {"image_size": 16, "encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16}
SIZES |= {"decoder_depth": 1, "decoder_heads": 2, "tail_depth": 0, "scales": [1, 2], "latent_dim": 4}
WORDS = {"num_classes": None, "text_shape": [3, 8], "text_encoder": {"name": "bytes", "num_pieces": 64, "depth": 0}}


@pytest.fixture(scope="module")
def program() -> dict[str, object]:
    return runpy.run_path(str(PROGRAM), run_name="measure_words")


def test_the_right_one_is_first_where_its_error_is_least(program) -> None:
    errors = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.5]])
    found = program["_ranks"](errors)
    assert found == {"first": pytest.approx(1 / 3), "in 5": 1.0, "median rank": 2.0}


def toy_pipeline(**changes: Any) -> TextToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("hieratok-tiny", **{**SIZES, **changes}).eval()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "level_specs": specs_to_json(tokenizer.specs)}
    pipe = TextToImagePipeline(tokenizer=tokenizer, generator=create("flow-tiny", **sizes, **WORDS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pictures_are_found_by_their_texts(program) -> None:
    pipe = toy_pipeline()
    pictures = SimpleNamespace(
        name="test",
        classes=["a/b | flat", "a/c | flat", "a/c | round"],
        names=["cat", "dog", "cow"],
        images=lambda indices: torch.rand(len(indices), 3, 16, 16) * 2 - 1,
    )
    settings = program["Settings"](num_candidates=3, attribute="flat")
    found = program["retrieve"](pipe, pictures, settings)
    assert found["candidates"] == 2
    # A new model does not look at the words: what a text gains over no text is nothing, and no picture is better than the right one.
    assert found["error with the right text"] == pytest.approx(found["error without a text"])
    assert found["picture of a text"]["first"] == 1.0


def colored_archive(path: Path, count: int = 120) -> None:
    """Write pictures of two groups, reddish and bluish ones, each with a bright left half."""
    rng, files = np.random.default_rng(0), []
    for k in range(count):
        pixels = rng.integers(0, 90, (64, 64, 3), dtype=np.uint8)
        pixels[:, :32, 2 * (k % 2)] += 140
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "webp", lossless=True)
        files.append(file.getvalue())
    np.savez(
        path,
        webp=np.frombuffer(b"".join(files), np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=np.arange(count) % 2,
        classes=np.array(["red/a", "blue/b"]),
        styles=np.zeros(count, np.int64),
        style_names=np.array(["flat"]),
        names=np.array([f"flat/thing-{k}" for k in range(count)]),
    )


@pytest.fixture
def stage(program, tmp_path, monkeypatch) -> SimpleNamespace:
    """The program with an archive, an extractor by hand and LPIPS of random weights."""
    colored_archive(tmp_path / "set.npz")

    def means(config: ExtractorConfig, device: torch.device) -> Extractor:
        return Extractor("means", "means", lambda x: {"pool": x.float().mean((2, 3))}, "FD-means", 3, "means-1")

    monkeypatch.setitem(EXTRACTORS, "means", means)
    torch.manual_seed(0)
    network = LPIPS("alex")
    monkeypatch.setattr(LPIPS, "from_files", lambda *args, **kwargs: network)
    data = DataConfig(
        f"npz:{tmp_path / 'set.npz'}",
        size=64,
        hold_out=4,
        hold_out_by="name",
        label_column="labels+styles",
        in_memory=False,
    )
    settings = program["Settings"](
        data=data,
        extractor=ExtractorConfig("means"),
        cache=str(tmp_path / "cache"),
        num_samples=40,
        num_blind=12,
        sampling={"num_steps": 1},
    )
    sides = [program["Pictures"].of(settings, split) for split in ("train", "test")]
    pipe = toy_pipeline(image_size=64, patch_size=32)
    return SimpleNamespace(args=(pipe, *sides, settings, tmp_path), train=sides[0], out=tmp_path)


def test_training_pictures_in_the_mirror_are_told_from_new_ones(program, stage, monkeypatch) -> None:
    chosen = program["draw"](len(stage.train), 40)
    monkeypatch.setitem(program["likeness"].__globals__, "make", lambda *_: stage.train.images(chosen).flip(-1))
    program["likeness"](*stage.args)
    found = json.loads((stage.out / "likeness.json").read_text())
    for near in found["nearness"].values():
        assert near["made, 50 %"] == pytest.approx(0, abs=1e-4)
        assert near["held out, 1 %"] > 0.001
        assert near["share below 1 % of held out"] == 1
    assert found["judge"]["made"]["group"] == found["judge"]["held out"]["group"] == 1
    assert found["5 nearest neighbors, means"] == {"made": 1, "held out": 1}
    # The machine sees places, so mirrored pictures may mislead it; held-out ones do not.
    assert found["support vector machine on 8x8 pixels"]["held out"] == 1
    few, many = found["FD-means"].values()
    assert set(few) == {"made", "held out", "rebuilt", "other half"}
    assert set(many) == {"made", "other half"}
    assert few["made"][0] < 5 * few["other half"][0]


def test_samples_are_kept_by_what_made_them(program, stage, monkeypatch) -> None:
    keep, (pipe, _, _, settings, out) = program["_kept_samples"], stage.args
    first = keep(pipe, ["cat", "dog"], settings, out)
    monkeypatch.setitem(keep.__globals__, "make", lambda *_: pytest.fail("they are there"))
    assert torch.equal(keep(pipe, ["cat", "dog"], settings, out), first)
    monkeypatch.setitem(keep.__globals__, "make", lambda *_: torch.zeros(2, 3, 64, 64))
    assert not torch.equal(keep(pipe, ["cat", "cow"], settings, out), first)


def test_sheets_without_names(program, stage) -> None:
    program["blind"](*stage.args)
    for name, splits in (("blind", {"train", "test"}), ("blind-real", {"test"})):
        answers = json.loads((stage.out / f"{name}.json").read_text())
        assert [answer["number"] for answer in answers] == list(range(1, 13))
        assert (stage.out / f"{name}-1.png").is_file()
        assert {answer["split"] for answer in answers} == splits
