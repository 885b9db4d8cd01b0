"""`hiergen bench var`: how long VAR takes to sample, with and without its cache, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hiergen.benchmarks.generators.samplers import Sampler, measure_samplers
from hiergen.benchmarks.measuring.plain.var import PlainSampler
from hiergen.benchmarks.measuring.timing import publish, random_model
from hiergen.benchmarks.settings import VARSettings
from hiergen.environment import choose_device
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.next_scale.settings import NextScaleSettings


def run(settings: VARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" what `measure_samplers` returns.
    """
    device = choose_device(settings.device)
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    model: NextScaleAR = random_model(settings.preset, "NextScaleAR", seed=settings.seed, **overrides)
    # A new head is almost flat, and all ids would be drawn from the same distribution.
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(settings.seed))
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    num_classes = model.config["num_classes"]
    rows = measure_samplers(_samplers(model, settings), settings, num_classes=num_classes, device=device)
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.dtype}",
        caption="plain: the published loop, which joins keys and values and computes every modulation at every level",
        names=("sampler",),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "same ids": ("equal_ids", ".1%")},
    )


def _samplers(model: NextScaleAR, settings: VARSettings) -> dict[str, Sampler]:
    published = dataclasses.replace(NextScaleSettings.published(), guidance_scale=settings.guidance_scale)
    uncached = dataclasses.replace(published, use_cache=False)
    plain = PlainSampler(model)
    return {
        "cached": lambda labels, rng: model.generate(labels, published, rng=rng).concat(),
        "uncached": lambda labels, rng: model.generate(labels, uncached, rng=rng).concat(),
        "plain": lambda labels, rng: plain.generate(labels, published, rng=rng),
    }
