"""What a training run is. All horizons and intervals count samples seen, so a run means the same on 1 or 64 processes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.training.optim import OptimConfig
from hiergen.training.task import TaskConfig

__all__ = ["OptimConfig", "TrainConfig"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        task: What is trained, on what, with which losses.
        out: Folder of the run: checkpoints, log, and at the end `model/` by `save_pretrained`.
        samples: Samples to see.
        batch_size: Samples an optimizer step, over all processes and accumulation steps.
        accumulation: Parts into which each process cuts its share of a batch.
        seed: Of everything random.
        precision: "no" is float32; "bf16" and "fp16" are autocast.
        num_workers: Processes that load data, per training process.
        optim: Optimizer of every player that has none of its own.
        ema_decay: Decay of the averaged weights, ramped as min(decay, (1 + s) / (10 + s)); None for no averaging.
        checkpoint_every: Samples between checkpoints; there is always one at the end.
        keep_last: Checkpoints to keep.
        log_every: Samples between log lines.
        max_skipped: Stop after this many steps skipped for non-finite gradients.
        compile: Run the players through `torch.compile`.
        trackers: Where the log goes beside `log.jsonl`, by Accelerate's names: "tensorboard", "wandb", "trackio".
    """

    task: TaskConfig
    out: str
    samples: int
    batch_size: int = 64
    accumulation: int = 1
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    num_workers: int = 0
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    ema_decay: float | None = 0.9999
    checkpoint_every: int = 1_000_000
    keep_last: int = 2
    log_every: int = 10_000
    max_skipped: int = 100
    compile: bool = False
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "accumulation", "checkpoint_every", "keep_last", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size is {self.batch_size}, expected a multiple of accumulation {self.accumulation}"
            )

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the run: samples over batch size, rounded up."""
        return -(-self.samples // self.batch_size)
