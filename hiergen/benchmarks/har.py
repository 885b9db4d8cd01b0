"""`hiergen bench har`: how long HAR takes to sample, with and without its cache, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.benchmarks.measuring.plain.har import PlainSampler
from hiergen.benchmarks.measuring.timing import describe_times, publish, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import HARSettings
from hiergen.environment import choose_device
from hiergen.generators.level_ar.model import LevelAR, LevelARSettings

#: Returns the ids of class labels.
Sampler = Callable[[Tensor, torch.Generator], Tensor]


def run(settings: HARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size and sampler the median, fastest and slowest
        time of a batch in seconds, images per second, how many times faster than each plain sampler it is (medians), and the share
        of ids that equal those of the cached sampler with the same seed (1, but for rounding near the edge of a draw).
    """
    device = choose_device(settings.device)
    model = _random_model(settings)
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    samplers = _samplers(model, settings)
    rows = [row for batch in settings.batches for row in _measure_batch(samplers, batch, model, settings)]
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.dtype}",
        caption=(
            "plain: a padded cache under a mask; rebuilding: the same with mask and rotary table built anew in every layer; "
            "x: times faster than"
        ),
        names=("sampler",),
        extra={
            "x plain": ("times_faster_than_plain", ".2f"),
            "x rebuilding": ("times_faster_than_rebuilding", ".2f"),
            "same ids": ("equal_ids", ".1%"),
        },
    )


def _random_model(settings: HARSettings) -> LevelAR:
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    model: LevelAR = random_model(settings.preset, "LevelAR", seed=settings.seed, **overrides)
    # A new head is zero, and all ids would be drawn from the same flat distribution.
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(settings.seed))
    return model


def _samplers(model: LevelAR, settings: HARSettings) -> dict[str, Sampler]:
    published = dataclasses.replace(LevelARSettings.published(), guidance_scale=settings.guidance_scale)
    uncached = dataclasses.replace(published, use_cache=False)
    plain = PlainSampler(model, rebuild_tables=False)
    rebuilding = PlainSampler(model, rebuild_tables=True)
    return {
        "cached": lambda labels, rng: model.generate(labels, published, rng=rng).concat(),
        "uncached": lambda labels, rng: model.generate(labels, uncached, rng=rng).concat(),
        "plain": lambda labels, rng: plain.generate(labels, published, rng=rng),
        "rebuilding": lambda labels, rng: rebuilding.generate(labels, published, rng=rng),
    }


def _measure_batch(
    samplers: dict[str, Sampler], batch: int, model: LevelAR, settings: HARSettings
) -> list[dict[str, Any]]:
    labels = (torch.arange(batch) % model.config["num_classes"]).to(model.device)
    ids: dict[str, Tensor] = {}

    def draw(name: str) -> None:
        ids[name] = samplers[name](labels, torch.Generator(model.device).manual_seed(settings.seed))

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
            "times_faster_than_rebuilding": medians["rebuilding"] / medians[name],
            "equal_ids": (ids[name] == ids["cached"]).float().mean().item(),
        }
        for name in samplers
    ]
