"""A run of every kind, stopped three times and resumed, equals the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import kinds
import pytest
import torch

from hiergen.training import loop
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.reporting.run_log import MEASURED
from hiergen.training.step import PlayerLoss
from hiergen.training.tasks.settings import TaskConfig


def run(task: TaskConfig, out: Path, **changes: Any) -> TrainConfig:
    values = {"samples": 24, "batch_size": 4, "accumulation": 2, "log_every": 4, "ema_decay": 0.5, "trackers": ()}
    optim = OptimConfig(lr=1e-3, warmup_samples=8)
    return TrainConfig(**{"task": task, "out": str(out), "optim": optim, **values, **changes})


def fit_until(config: TrainConfig, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM during the given pass, counted from the start of this process over steps, parts of a batch and players."""
    forward, calls = PlayerLoss.forward, iter(range(1000))

    def watched(self: Any, batch: Any, rng: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(PlayerLoss, "forward", watched)
        with pytest.raises(RunInterruptedError):
            fit(config, cpu=True)


def stopped_in_the_last_step(step: Any, signals: list[int]) -> Any:
    """Return a step that sends SIGTERM where 20 of 24 samples were seen, and notes it."""

    def watched(self: Any, batch: Any) -> Any:
        if self.state.samples_seen == 20:
            signals.append(self.state.samples_seen)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    return watched


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_run_of_every_kind_is_resumed_bit_for_bit(kind, tmp_path, monkeypatch) -> None:
    """Six steps of two parts: stopped in the first step, between the parts of the third, in the fourth or fifth, and in the last.

    Codes are ten samples, so that the fifth step ends an epoch. Workers change between none and two.
    """
    task = kinds.KINDS[kind](tmp_path)
    fit(run(task, tmp_path / "whole"), cpu=True)
    for call, num_workers in ((0, 0), (3, 2), (2, 0)):
        fit_until(run(task, tmp_path / "parts", num_workers=num_workers), call, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", stopped_in_the_last_step(loop._Run._step, signals := []))
        # It has nothing left to continue with: it ends as if it had not been asked to.
        assert fit(run(task, tmp_path / "parts", num_workers=2), cpu=True).samples_seen == 24
    assert signals == [20]
    whole, parts = (load_checkpoint(find_checkpoint(tmp_path / name / "checkpoints"))[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for stem in whole:
        for name, value in whole[stem].items():
            assert torch.equal(value, parts[stem][name]), f"{stem}: {name}"
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    for one, two in zip(*logs, strict=True):
        first, second = json.loads(one), json.loads(two)
        assert {k: v for k, v in first.items() if k not in MEASURED} == {
            k: v for k, v in second.items() if k not in MEASURED
        }
    assert len(logs[0]) == 6
