"""What the benchmarks of generators of ids share: samplers take turns on the same labels and seeds, and their ids are compared."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hiergen.benchmarks.measuring.settings import TimingSettings
from hiergen.benchmarks.measuring.timing import describe_times, plainly, take_turns
from hiergen.benchmarks.measuring.work import measure_work

#: Returns the ids of class labels.
Sampler = Callable[[Tensor, torch.Generator], Tensor]


def measure_samplers(
    samplers: Mapping[str, Sampler],
    settings: TimingSettings,
    *,
    num_classes: int,
    device: torch.device,
    baselines: Sequence[str] = ("plain",),
) -> list[dict[str, Any]]:
    """Return a row for each batch size and sampler.

    Args:
        samplers: Samplers by name; the ids of the others are compared with those of the first.
        settings: Batch sizes, repetitions and the seed of every draw.
        num_classes: Number of classes; labels are the first ones, in turn.
        device: Device of labels and draws.
        baselines: Names of the samplers that the others are timed against.

    Returns:
        Rows of JSON values: "batch", "sampler", what `describe_times` returns, of the first sampler also what
        `measure_work` does, "times_faster_than_NAME" for each baseline (medians), and
        "equal_ids", the share of ids that equal the first sampler's with the same seed (1, but for rounding near the edge of a draw).
    """
    rows = []
    for batch in settings.batches:
        labels = (torch.arange(batch) % num_classes).to(device)
        ids: dict[str, Tensor] = {}

        def draw(name: str, labels: Tensor = labels, ids: dict[str, Tensor] = ids) -> None:
            ids[name] = samplers[name](labels, torch.Generator(device).manual_seed(settings.seed))

        calls: dict[str, Callable[..., None]] = {name: functools.partial(draw, name) for name in samplers}
        calls |= {name: plainly(calls[name]) for name in baselines}
        times = take_turns(calls, repeats=settings.repeats, device=device)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ours = next(iter(samplers))
        work = measure_work(calls[ours])
        rows += [
            {
                "batch": batch,
                "sampler": name,
                **describe_times(times[name], batch),
                **(work if name == ours else {}),
                **{f"times_faster_than_{other}": medians[other] / medians[name] for other in baselines},
                "equal_ids": (ids[name] == ids[ours]).float().mean().item(),
            }
            for name in samplers
        ]
    return rows
