"""`hiergen bench var`: how long VAR takes to sample, with and without its cache, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.benchmarks.measuring.plain.var import PlainSampler
from hiergen.benchmarks.measuring.timing import describe_times, publish, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import VARSettings
from hiergen.environment import choose_device
from hiergen.generators.next_scale.model import NextScaleAR, NextScaleSettings


def run(settings: VARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size and sampler the median, fastest and slowest time of a
        batch in seconds, images per second, how many times faster than the plain sampler it is (medians), and the share of ids that equal
        those of the cached sampler with the same seed (1, but for rounding near the edge of a draw).
    """
    device = choose_device(settings.device)
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    model: NextScaleAR = random_model(settings.preset, "NextScaleAR", seed=settings.seed, **overrides)
    # A new head is almost flat, and all ids would be drawn from the same distribution.
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(settings.seed))
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    rows = [row for batch in settings.batches for row in _measure_batch(model, batch, settings)]
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.dtype}",
        caption="plain: the published loop, which joins keys and values and computes every modulation at every level",
        names=("sampler",),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "same ids": ("equal_ids", ".1%")},
    )


def _measure_batch(model: NextScaleAR, batch: int, settings: VARSettings) -> list[dict[str, Any]]:
    labels = (torch.arange(batch) % model.config["num_classes"]).to(model.device)
    published = dataclasses.replace(NextScaleSettings.published(), guidance_scale=settings.guidance_scale)
    uncached = dataclasses.replace(published, use_cache=False)
    plain = PlainSampler(model)
    samplers: dict[str, Callable[[torch.Generator], Tensor]] = {
        "cached": lambda rng: model.generate(labels, published, rng=rng).concat(),
        "uncached": lambda rng: model.generate(labels, uncached, rng=rng).concat(),
        "plain": lambda rng: plain.generate(labels, published, rng=rng),
    }
    ids: dict[str, Tensor] = {}

    def draw(name: str) -> None:
        ids[name] = samplers[name](torch.Generator(model.device).manual_seed(settings.seed))

    times = take_turns(
        {name: functools.partial(draw, name) for name in samplers}, repeats=settings.repeats, device=model.device
    )
    work = measure_work(functools.partial(draw, "cached"))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "batch": batch,
            "sampler": name,
            **describe_times(times[name], batch),
            **(work if name == "cached" else {}),
            "times_faster_than_plain": medians["plain"] / medians[name],
            "equal_ids": (ids[name] == ids["cached"]).float().mean().item(),
        }
        for name in samplers
    ]
