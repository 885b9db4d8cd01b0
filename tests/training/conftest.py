from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hiergen.training.reporting.run_log import MEASURED
from hiergen.training.tasks.base import Task

#: What the loop's scaler does to float16 losses, at a scale that sums over an image survive.
LOSS_SCALE = {torch.float16: 16.0}


def training_step(task: Task, images: Tensor, dtype: torch.dtype | None) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Return each player's terms and all its gradients in one vector; under autocast if there is a dtype."""
    found, scale = {}, LOSS_SCALE.get(dtype, 1.0)
    for name, player in task.players.items():
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            terms = task.losses(name, {"image": images}, torch.Generator().manual_seed(3))
        player.zero_grad()
        (scale * terms["loss"]).backward()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in player.parameters()]
        found[name] = terms, torch.cat([gradient.flatten() for gradient in gradients]) / scale
    return found


@pytest.fixture
def assert_near_float32() -> Callable[[Task, torch.dtype], None]:
    """A check of a training step under autocast: terms in float32 and finite gradients, both near those of float32."""

    def check(task: Task, dtype: torch.dtype) -> None:
        images = task.dataset.batch([(index, 0) for index in range(4)], seed=0)["image"]
        full, half = training_step(task, images, None), training_step(task, images, dtype)
        for player, (terms, gradient) in half.items():
            for name, term in terms.items():
                assert term.dtype == torch.float32, name
                torch.testing.assert_close(term, full[player][0][name], rtol=0.02, atol=0.002, msg=name)
            assert gradient.isfinite().all()
            error = (gradient - full[player][1]).norm() / full[player][1].norm()
            assert error < 0.05, (player, error)

    return check


def run_beside(program: str, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program)), str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session", name="run_beside")
def _run_beside() -> Callable[[str, Path], Path]:
    """What runs a program of this folder to its end, with a folder to write to, and returns that."""
    return run_beside


@pytest.fixture(scope="session")
def curve() -> Callable[[Path], list[dict[str, float]]]:
    """What reads the lines of a run's log, less what is measured."""

    def read(out: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]

    return read
