"""`hiergen bench har`: how long HAR takes to sample, with and without its cache, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hiergen.benchmarks.generators.samplers import Sampler, measure_samplers
from hiergen.benchmarks.measuring.plain.har import PlainSampler
from hiergen.benchmarks.measuring.timing import publish, random_model
from hiergen.benchmarks.settings import HARSettings
from hiergen.environment import choose_device
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings


def run(settings: HARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" what `measure_samplers` returns.
    """
    device = choose_device(settings.device)
    model = _random_model(settings)
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    rows = measure_samplers(
        _samplers(model, settings),
        settings,
        num_classes=model.config["num_classes"],
        device=device,
        baselines=("plain", "rebuilding"),
    )
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
