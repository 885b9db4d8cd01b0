"""`hiergen bench maskgit`: how long TiTok's MaskGIT takes to sample, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hiergen.benchmarks.generators.samplers import Sampler, measure_samplers
from hiergen.benchmarks.measuring.plain.maskgit import PlainSampler
from hiergen.benchmarks.measuring.timing import publish, random_model
from hiergen.benchmarks.settings import MaskGITSettings
from hiergen.environment import choose_device
from hiergen.generators.masked.ids.model import MaskedIds, MaskedIdsSettings


def run(settings: MaskGITSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" what `measure_samplers` returns.
    """
    device = choose_device(settings.device)
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    model: MaskedIds = random_model(settings.preset, "MaskedIds", seed=settings.seed, **overrides)
    # A new head is almost flat, and all ids would be drawn by the noise alone.
    nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(settings.seed))
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    num_classes = model.config["num_classes"]
    rows = measure_samplers(_samplers(model, settings), settings, num_classes=num_classes, device=device)
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.num_steps} steps, {settings.dtype}",
        caption="plain: the published loop, with two passes per guided step and attention written out",
        names=("sampler",),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "same ids": ("equal_ids", ".1%")},
    )


def _samplers(model: MaskedIds, settings: MaskGITSettings) -> dict[str, Sampler]:
    published = dataclasses.replace(
        MaskedIdsSettings.published(32),
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        official_draws=True,
    )
    plain = PlainSampler(model)
    return {
        "hiergen": lambda labels, rng: model.generate(labels, published, rng=rng).concat(),
        "plain": lambda labels, rng: plain.generate(labels, published, rng=rng),
    }
