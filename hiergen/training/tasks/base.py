"""What the training loop needs to know of the thing that is trained: players, data, losses.

A player is a model or a discriminator; every step updates all players once, in order.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from hiergen.data.dataset import Dataset
from hiergen.training.optim import OptimConfig
from hiergen.training.tasks.settings import TaskConfig

__all__ = ["Task", "TaskConfig", "count_trained"]


class Task(abc.ABC):
    """Players, data and losses of a run.

    Attributes:
        players: Modules by name, in the order of their updates; the first is the one that the run is about.
        dataset: The samples.
        weights: How often each sample is visited, relative to the others, `(n,)`; None visits each once per epoch.
        validation: Held-out samples that are scored at every checkpoint interval, or None.
        unshardable: Why the parameters cannot be shared out over processes, or None if they can.
    """

    players: dict[str, nn.Module]
    dataset: Dataset
    weights: Float64[Tensor, " n"] | None = None
    validation: Dataset | None = None
    unshardable: str | None = None

    @abc.abstractmethod
    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Return named scalars of one player on one batch: "loss" is minimised, all are logged.

        Called for every player in order. The task keeps whatever a later player needs from an earlier player's pass.
        """

    @property
    def model(self) -> Any:
        """The model that the run is about: averaged, and saved at the end."""
        return next(iter(self.players.values()))

    def optim(self, player: str) -> OptimConfig | None:
        """Return a player's own optimizer settings; None takes the run's."""
        return None

    def rate_multipliers(self, player: str) -> dict[str, float]:
        """Return factors of a player's learning rate by the first parts of its parameters' names; by default what the model says."""
        found: dict[str, float] = getattr(self.players[player], "rate_multipliers", dict)()
        return found

    def start(self, player: str) -> int:
        """Return the samples seen before a player's first update; its schedule counts from there."""
        return 0

    def uses(self, player: str) -> tuple[str, ...]:
        """Return the other players that the next losses of a player run, whose parameters must then be gathered if they are shared out."""
        return ()

    def begin_step(self, samples_seen: int) -> None:
        """Note the position in the run. Called before the losses of every step, and on resuming once for the step before."""
        return None

    def summary(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return scalars over all batches since the last call, for the log.

        Args:
            reduce: Sums a tensor over all processes; every process makes the same calls.
        """
        return {}

    def validate(self, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Return named means over a batch of held-out samples, without gradients; by default the first player's losses."""
        return self.losses(next(iter(self.players)), batch, rng)

    def images(self) -> dict[str, Tensor]:
        """Return pictures (b, 3, h, w) in [-1, 1] by name, for the trackers; asked for at every checkpoint."""
        return {}


def count_trained(module: nn.Module) -> int:
    """Return how many numbers of a module are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
