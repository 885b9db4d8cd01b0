"""Scores on held-out data while a run trains: by the averaged weights, with the same draws every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hiergen.nn.running.modes import evaluating
from hiergen.seeding import make_rng
from hiergen.training.ema import Average
from hiergen.training.processes.sharding import gathered
from hiergen.training.tasks.base import Task

#: Samples per pass: without gradients they take little memory. The draws depend on it, so it is the same for all runs.
BATCH = 32


@contextlib.contextmanager
def averaged(model: nn.Module, ema: Average | None, player: nn.Module | None = None) -> Iterator[None]:
    """Inside, `model` has the averaged weights, where there are any, and is in evaluation mode.

    Args:
        model: The model.
        ema: The averages of its weights, or None.
        player: The player that holds the model, if the model is run inside: it is gathered where parameters are shared out, and every
            process must enter.
    """
    with evaluating(model), contextlib.nullcontext() if ema is None else ema.applied(model), gathered(player):
        yield


def validate(
    task: Task,
    ema: Average | None,
    accelerator: Accelerator,
    *,
    seed: int,
    player: nn.Module | None = None,
    share: tuple[int, int],
) -> dict[str, float]:
    """Return the means of `Task.validate` over `Task.validation`, named "val/...", the same on all processes.

    Batches are dealt to the processes; what each draws does not depend on their number. `player` as in `averaged`; `share` as of
    `hiergen.training.processes.launch.share_of_data`.
    """
    data = task.validation
    assert data is not None
    sums: dict[str, Tensor] = {}
    count, (rank, world) = 0, share
    with averaged(task.model, ema, player), torch.no_grad(), accelerator.autocast():
        starts = range(0, len(data), BATCH)
        # Every process takes part in the first batch, so that all know the names; the others are dealt out.
        for number, start in enumerate(starts):
            if number and number % world != rank:
                continue
            samples = [(index, 0) for index in range(start, min(start + BATCH, len(data)))]
            weight = 0 if not number and rank else len(samples)
            batch = {name: value.to(accelerator.device) for name, value in data.batch(samples, seed=seed).items()}
            rng = make_rng(seed, "validation", number, device=accelerator.device)
            torch.manual_seed(rng.initial_seed())
            for name, value in task.validate(batch, rng).items():
                sums[name] = sums.get(name, torch.zeros((), device=accelerator.device)) + weight * value.float()
            count += weight
    stacked = torch.stack([*sums.values(), torch.tensor(float(count), device=accelerator.device)])
    *totals, number_of_samples = cast(Tensor, accelerator.reduce(stacked, reduction="sum")).tolist()
    return {f"val/{name}": total / number_of_samples for name, total in zip(sums, totals, strict=True)}
