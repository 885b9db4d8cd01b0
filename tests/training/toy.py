"""A task small enough to run a hundred times in a test: a linear model with dropout and a second player."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hiergen.data.dataset import Dataset, Sample
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.settings import TaskConfig


class Numbers(Dataset):
    """Vectors that depend on the index, with noise that depends on (seed, epoch, index)."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        rows = [torch.arange(4.0) + index + 0.01 * epoch for index, epoch in samples]
        return {"x": torch.stack(rows) / self.size, "index": torch.tensor([index for index, _ in samples])}

    @property
    def fingerprint(self) -> str:
        return f"numbers-{self.size}"


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(self.first(x)))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        torch.save(self.state_dict(), os.path.join(folder, "weights.pt"))


@dataclasses.dataclass(frozen=True)
class ToyConfig(TaskConfig):
    """`stop_at`: raise SIGTERM at this call of the loss. `poison`: calls whose loss is NaN. `is_random`: dropout and noise.

    `poison_gradient`, `poison_critic`: calls of which the loss is finite, but what flows back to the toy or the critic is NaN.
    `first_weight`: how often the first sample is visited, where others are once.
    """

    size: int = 37
    stop_at: int = -1
    poison: tuple[int, ...] = ()
    poison_gradient: tuple[int, ...] = ()
    poison_critic: tuple[int, ...] = ()
    is_random: bool = True
    first_weight: float = 1.0

    def build(self) -> Task:
        return ToyTask(self)


class ToyTask(Task):
    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.toy, self.critic = Toy(), nn.Linear(1, 1)
        self.players = {"toy": self.toy, "critic": self.critic}
        if not config.is_random:
            self.toy.drop.p = 0.0
        self.dataset = Numbers(config.size)
        if config.first_weight != 1:
            self.weights = torch.tensor([config.first_weight] + [1.0] * (config.size - 1), dtype=torch.float64)
        self.calls = 0
        self.seen: list[int] = []

    def uses(self, player: str) -> tuple[str, ...]:
        return ("critic",) if player == "toy" else ()

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        if player == "critic":
            guess = self.critic(self.out.detach())
            # The toy's loss of the same step has counted this call.
            return {"loss": (_poisoned(guess, self.calls - 1 in self.config.poison_critic) - 1).square().mean()}
        if self.calls == self.config.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.seen += batch["index"].tolist()
        self.out = _poisoned(self.toy(batch["x"]), self.calls in self.config.poison_gradient)
        noise = torch.randn(self.out.shape, generator=rng) * self.config.is_random
        loss = (self.out - batch["x"].sum(1, keepdim=True) + 0.1 * noise).square().mean()
        loss = loss + 0.1 * self.critic(self.out).mean()
        if self.calls in self.config.poison:
            loss = loss * float("nan")
        self.calls += 1
        return {"loss": loss}


def _poisoned(value: Tensor, is_poisoned: bool) -> Tensor:
    """Return the same tensor, through which NaN flows back."""
    if is_poisoned:
        value.register_hook(lambda gradient: gradient * float("nan"))
    return value


def toy_run(out: str, **changes: object) -> TrainConfig:
    values = {
        "task": ToyConfig(),
        "out": out,
        "samples": 96,
        "batch_size": 8,
        "optim": OptimConfig(lr=1e-2, warmup_samples=16),
        "checkpoint_every": 24,
        "log_every": 8,
        "trackers": (),
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]
