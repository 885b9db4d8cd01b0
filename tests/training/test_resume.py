"""A run of every kind, stopped three times and resumed, equals the uninterrupted one bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.data.codes import write_codes
from hiergen.data.shape_sampling import SamplingSettings
from hiergen.data.shapes import ShapeBatchConfig, ShapeDataConfig
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.training import loop
from hiergen.training.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.codebook_health import CodebookConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.run_log import MEASURED
from hiergen.training.shape_task import ShapeGeneratorTaskConfig, ShapeTokenizerTaskConfig
from hiergen.training.task import TaskConfig
from hiergen.training.tasks import GeneratorTaskConfig, TokenizerTaskConfig
from hiergen.training.tokenizer_losses import AdversarialConfig

RESTOK = {"cnn_channels": 8, "cnn_groups": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2}
RESTOK |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "vocab_size": 32}
MAR = {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
MAR |= {"decoder_heads": 2, "head_dim": 16, "head_depth": 1}
VAE = {"num_tokens": [3, 5], "token_dim": 4, "width": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
SHAPES = ShapeDataConfig(
    count=8,
    sampling=SamplingSettings(num_surface=64, num_volume=64, num_near=32, num_farthest=0),
    batch=ShapeBatchConfig(num_points=32, num_ordered=16, num_queries=16, yaw=True),
)
SPECS = [{"num_tokens": 3, "grid": None, "dim": 4}, {"num_tokens": 5, "grid": None, "dim": 4}]
CASCADE = {"num_buffer": 2, "dim": 16, "depth": 1, "num_heads": 2, "head_dim": 16, "head_depth": 1}


def restok_with_gan(folder: Path) -> TaskConfig:
    """Nested dropout, revival, adaptive weight, augmentation, a discriminator with batch norm that begins after two steps."""
    return TokenizerTaskConfig(
        overrides=RESTOK,
        adversarial=AdversarialConfig(
            discriminator="patch",
            options={"dim": 4, "num_layers": 1},
            start_samples=8,
            is_adaptive=True,
            optim=OptimConfig(lr=3e-4, warmup_samples=8),
        ),
        codebook=CodebookConfig(revive_after=12),
    )


def generator(preset: str, **overrides: Any):
    def make(folder: Path) -> TaskConfig:
        specs = create(preset).specs

        def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
            rng = torch.Generator().manual_seed(0)
            variants = []
            for _ in range(2):
                levels = tuple(
                    torch.randint(0, 32, (stop - start, spec.num_tokens), generator=rng)
                    if spec.is_discrete
                    else torch.randn(stop - start, spec.num_tokens, spec.dim, generator=rng)
                    for spec in specs
                )
                variants.append(TokenPyramid(levels, specs))
            return variants, torch.arange(stop - start) % 10

        write_codes(folder / "codes", encode, num_samples=10, classes=[str(k) for k in range(10)], source=preset)
        kind = ShapeGeneratorTaskConfig if preset == "mar3d-tiny" else GeneratorTaskConfig
        return kind(preset=preset, overrides=overrides, codes=str(folder / "codes"))

    return make


KINDS = {
    "restok with gan": restok_with_gan,
    "hieratok": lambda folder: TokenizerTaskConfig(
        "hieratok-tiny", {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}
    ),
    "har": generator("har-tiny", dim=20, depth=1),
    "mar": generator("mar-tiny", **MAR),
    "flow": generator("flow-tiny", dim=16, depth=1, num_heads=2),
    "shape vae": lambda folder: ShapeTokenizerTaskConfig(overrides={**VAE, "point_counts": [32, 16, 8]}, data=SHAPES),
    "cascade": generator("mar3d-tiny", **CASCADE),
}


def run(task: TaskConfig, out: Path, **changes: Any) -> TrainConfig:
    values = {"samples": 24, "batch_size": 4, "accumulation": 2, "log_every": 4, "ema_decay": 0.5, "trackers": ()}
    optim = OptimConfig(lr=1e-3, warmup_samples=8)
    return TrainConfig(**{"task": task, "out": str(out), "optim": optim, **values, **changes})


def fit_until(config: TrainConfig, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM during the given pass, counted from the start of this process over steps, parts of a batch and players."""
    forward, calls = loop._PlayerLoss.forward, iter(range(1000))

    def watched(self: Any, batch: Any, rng: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, rng)

    with monkeypatch.context() as patch:
        patch.setattr(loop._PlayerLoss, "forward", watched)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind_is_resumed_bit_for_bit(kind, tmp_path, monkeypatch) -> None:
    """Six steps of two parts: stopped in the first step, between the parts of the third, in the fourth or fifth, and in the last.

    Codes are ten samples, so that the fifth step ends an epoch. Workers change between none and two.
    """
    task = KINDS[kind](tmp_path)
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
