from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import toy

from hiergen.data.codes import write_codes
from hiergen.data.config import DataConfig
from hiergen.metrics.pixel import psnr
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.training import loop
from hiergen.training.checkpoints.best import Best, improvement
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig

SMALL = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}


def judge(lines: list[dict[str, float]], best: Best | None = None, **changes: object) -> Best | None:
    config = toy.toy_run("x", **{"keep_best": "loss", **changes})
    return improvement(config, lines, since=10, samples_seen=30, best=best)


def test_the_mean_since_the_last_interval_is_compared() -> None:
    lines = [{"samples": 10.0, "loss": 0.0}, {"samples": 20.0, "loss": 1.0}, {"samples": 30.0, "loss": 2.0}]
    assert judge(lines) == Best("loss", 1.5, 30)
    assert judge(lines, Best("loss", 1.5, 10)) is None
    assert judge(lines, Best("loss", 1.6, 10)) == Best("loss", 1.5, 30)
    assert judge(lines, Best("loss", 1.4, 10), best_is="highest") == Best("loss", 1.5, 30)
    assert judge(lines, keep_best=None) is None
    # What is not finite is null in the file, so a line that was read back has None.
    for bad in (math.nan, math.inf, None):
        assert judge([*lines, {"samples": 30.0, "loss": bad}]) is None
    assert judge([{"samples": 30.0, "other": 1.0}]) is None
    assert Best.restore({"name": "loss", "value": 1.0, "samples_seen": 3}, toy.toy_run("x", keep_best="other")) is None


def test_the_best_model_is_kept_and_a_stop_does_not_change_it(tmp_path, monkeypatch) -> None:
    """The loss is made to fall and rise again, so that the best model is not the last; a run stopped between checkpoints keeps the same."""
    means = iter([5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    real = loop.Meter.means
    monkeypatch.setattr(
        loop.Meter, "means", lambda self, accelerator: {**real(self, accelerator), "watched": next(means)}
    )
    result = fit(toy.toy_run(str(tmp_path / "a"), keep_best="watched"))
    # A checkpoint every 24 of 96 samples, a line every 8: 5 4 3 | 2 1 2 | 3 4 5 | ...
    best = json.loads((tmp_path / "a" / "best" / "best.json").read_text())
    assert best == {"name": "watched", "value": pytest.approx(5 / 3), "samples_seen": 48}
    weights = torch.load(tmp_path / "a" / "best" / "weights.pt", weights_only=True)
    last = torch.load(result.model_dir / "weights.pt", weights_only=True)
    assert not torch.equal(weights["first.weight"], last["first.weight"])

    means = iter([5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    # The stop comes after 2 and 1, whose mean is lower than that of the whole interval.
    stops = iter([0] * 4 + [15] + [0] * 20)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_agree", lambda self, number: next(stops))
        with pytest.raises(RunInterruptedError):
            fit(toy.toy_run(str(tmp_path / "b"), keep_best="watched"))
    fit(toy.toy_run(str(tmp_path / "b"), keep_best="watched"))
    assert json.loads((tmp_path / "b" / "best" / "best.json").read_text()) == best
    again = torch.load(tmp_path / "b" / "best" / "weights.pt", weights_only=True)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_misspelled_entry_is_refused_at_the_first_line(tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"keep_best is 'los', the log of this run has critic/grad_norm, critic/loss, toy"
    ):
        fit(toy.toy_run(str(tmp_path / "a"), keep_best="los"))
    with pytest.raises(ValueError, match=r"keep_best is 'val/loss', but the task has no held-out samples"):
        fit(toy.toy_run(str(tmp_path / "b"), keep_best="val/loss"))


def test_held_out_images_are_scored_by_the_averaged_weights(tmp_path) -> None:
    task = TokenizerTaskConfig(preset="hieratok-tiny", overrides=SMALL, validation=DataConfig(split="test"))
    run = toy.toy_run(str(tmp_path), task=task, samples=16, log_every=8, checkpoint_every=8, ema_decay=0.5)
    run = dataclasses.replace(run, keep_best="val/psnr", best_is="highest")
    log = fit(run, cpu=True).log
    assert [line["samples"] for line in log if "val/psnr" in line] == [8, 16]
    model = HieraTok.from_pretrained(tmp_path / "model")
    images = task.build().validation.images
    with torch.no_grad():
        rebuilt = model(images).reconstruction
    assert log[-1]["val/psnr"] == pytest.approx(float(psnr(rebuilt, images).mean()), rel=1e-4)
    assert log[-1]["val/pixel"] == pytest.approx(float(((rebuilt - images) / 2).square().mean()), rel=1e-4)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["value"] == log[-1]["val/psnr"]
    # Without held-out samples the same run is trained.
    alone = dataclasses.replace(run, out=str(tmp_path / "alone"), keep_best=None)
    alone = dataclasses.replace(alone, task=dataclasses.replace(task, validation=None))
    lines = fit(alone, cpu=True).log
    assert [line["loss"] for line in lines] == [line["loss"] for line in log if "loss" in line]


def test_a_generator_is_scored_on_held_out_codes_and_shows_samples(tmp_path) -> None:
    tokenizer = create("hieratok-tiny", **SMALL)
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        levels = tuple(torch.randn(stop - start, spec.num_tokens, spec.dim) for spec in tokenizer.specs)
        return [TokenPyramid(levels, tokenizer.specs)], torch.arange(stop - start) % 3

    for name in ("train", "test"):
        write_codes(tmp_path / name, encode, num_samples=40, classes=["a", "b", "c"], source=name)
    task = GeneratorTaskConfig(
        preset="flow-tiny",
        overrides={"dim": 16, "depth": 1, "num_heads": 2},
        codes=str(tmp_path / "train"),
        validation_codes=str(tmp_path / "test"),
        tokenizer=str(tmp_path / "tokenizer"),
    )
    run = toy.toy_run(str(tmp_path / "run"), task=task, samples=8, trackers=None)
    log = fit(run, cpu=True).log
    # 40 samples are batches of 32 and 8; each draws from its own seed, so scoring again gives the same.
    assert {"val/loss", "val/mse"} <= log[-1].keys()
    built = task.build()
    pictures = built.images()["samples"]
    assert pictures.shape == (3, 3, 32, 32)
    assert torch.equal(pictures, built.images()["samples"])
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "run"), size_guidance={"images": 0}).Reload()
    assert len(events.Images("samples")) == 1
    assert {"loss", "val/loss"} <= set(events.Tags()["scalars"])
