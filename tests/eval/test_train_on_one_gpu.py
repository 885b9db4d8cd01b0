"""The program that trains a tokenizer for a given time: on a CPU, for a moment, with a recipe of the smallest size."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from hiergen.data.config import DataConfig
from hiergen.evaluation.features.extractors import EXTRACTORS, Extractor
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.tasks.settings import GeneratorTaskConfig, TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, PerceptualConfig

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "train_on_one_gpu.py"
SMALL = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}


@pytest.fixture
def program(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_on_one_gpu", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_on_one_gpu", module)
    spec.loader.exec_module(module)
    return module


def recipe() -> TrainConfig:
    task = TokenizerTaskConfig(
        preset="hieratok-tiny",
        overrides=SMALL,
        perceptual=PerceptualConfig(weights="nowhere"),
        adversarial=AdversarialConfig(discriminator="patch", options={"dim": 4, "num_layers": 1}, start_samples=10**6),
        data=DataConfig(source="DATA/pictures", in_memory=False, flip=True),
    )
    return TrainConfig(task=task, out="x", samples=10**6, batch_size=8, optim=OptimConfig(warmup_samples=10**4))


def mean_color(config: ExtractorConfig, device: torch.device) -> Extractor:
    def features(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pool": images.float().mean(dim=(2, 3))}

    return Extractor("mean-color", "mean of each channel", features, "FD-mean-color", 3, "mean-color-1")


def test_a_moment_of_training_ends_in_a_report_and_is_not_repeated(program, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "load_recipe", lambda path: recipe())
    monkeypatch.setitem(EXTRACTORS, "mean-color", mean_color)
    settings = program.Settings(
        minutes=0.01, out=str(tmp_path), source="digits", num_test=40, extractor=ExtractorConfig("mean-color")
    )
    report = program.train(settings)
    plan = json.loads((tmp_path / "plan.json").read_text())
    run = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run["samples"] == plan["samples"] == max(8, int(plan["samples_per_second"] * 0.6 / 8) * 8)
    assert run["task"]["adversarial"]["start_samples"] == plan["samples"] // 2
    assert run["optim"]["warmup_samples"] == plan["samples"] // 20
    assert run["task"]["data"]["flip"] is False
    assert run["task"]["perceptual"] is None
    assert report["counts"]["images"] == 40
    assert "mfu" in capsys.readouterr().out
    for name in ("evaluation/report.md", "run/best/best.json", "curves.png"):
        assert (tmp_path / name).is_file()
    assert not (tmp_path / "speed").exists()
    assert program.train(settings)["metrics"] == report["metrics"]
    assert json.loads((tmp_path / "plan.json").read_text()) == plan


def test_what_does_not_fit_is_refused(program, monkeypatch) -> None:
    monkeypatch.setattr(program, "load_recipe", lambda path: recipe())
    with pytest.raises(ValueError, match=r"source is 'DATA/pictures', which has no test split: give held-out images"):
        program.choose_run(program.Settings())
    with pytest.raises(ValueError, match=r"minutes is 0, expected above 0"):
        program.Settings(minutes=0)
    monkeypatch.setattr(
        program, "load_recipe", lambda path: TrainConfig(task=GeneratorTaskConfig(), out="x", samples=1)
    )
    with pytest.raises(ValueError, match="has a GeneratorTaskConfig, expected one that trains a tokenizer of images"):
        program.choose_run(program.Settings())
