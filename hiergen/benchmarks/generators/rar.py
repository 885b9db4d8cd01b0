"""`hiergen bench rar`: how long RAR takes to sample, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hiergen.benchmarks.generators.samplers import Sampler, measure_samplers
from hiergen.benchmarks.measuring.plain.rar import PlainSampler
from hiergen.benchmarks.measuring.timing import publish, random_model
from hiergen.benchmarks.settings import RARSettings
from hiergen.environment import choose_device
from hiergen.generators.random_order.model import RandomOrderAR, RandomOrderARSettings


def run(settings: RARSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" what `measure_samplers` returns.
    """
    device = choose_device(settings.device)
    model = _random_model(settings)
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    num_classes = model.config["num_classes"]
    rows = measure_samplers(_samplers(model, settings), settings, num_classes=num_classes, device=device)
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.dtype}",
        caption="plain: the published loop, which embeds all tokens again at every step and joins keys and values",
        names=("sampler",),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "same ids": ("equal_ids", ".1%")},
    )


def _random_model(settings: RARSettings) -> RandomOrderAR:
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    model: RandomOrderAR = random_model(settings.preset, "RandomOrderAR", seed=settings.seed, **overrides)
    # New blocks change nothing and a new head is almost flat: no id would depend on those before it.
    rng = torch.Generator().manual_seed(settings.seed)
    blocks: list[Any] = list(model.blocks)
    for layer in (model.head, model.norm_out.modulation, *(block.modulation for block in blocks)):
        nn.init.normal_(layer.weight, std=0.1, generator=rng)
    return model


def _samplers(model: RandomOrderAR, settings: RARSettings) -> dict[str, Sampler]:
    published = dataclasses.replace(
        RandomOrderARSettings.published("b"), guidance_scale=settings.guidance_scale, official_draws=True
    )
    uncached = dataclasses.replace(published, use_cache=False)
    plain = PlainSampler(model)
    samplers: dict[str, Sampler] = {
        "cached": lambda labels, rng: model.generate(labels, published, rng=rng).concat(),
        "plain": lambda labels, rng: plain.generate(labels, published, rng=rng),
    }
    if settings.uncached:
        samplers["uncached"] = lambda labels, rng: model.generate(labels, uncached, rng=rng).concat()
    return samplers
