"""`hiergen bench restok`: images per second through encoder and decoder, beside a plain transcription on the same weights."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from torch import nn

from hiergen.benchmarks.measuring.plain.restok import PlainResTok
from hiergen.benchmarks.measuring.timing import describe_times, plainly, publish, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import ResTokSettings
from hiergen.environment import choose_device
from hiergen.tokenizers.restok.model import ResTok


def run(settings: ResTokSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers as JSON values.

    Raises:
        ValueError: If the preset is no ResTok.
    """
    device = choose_device(settings.device)
    model: ResTok = random_model(settings.preset, "ResTok", seed=settings.seed)
    nn.Module.to(model, device)
    rows = [row for batch in settings.batches for row in _measure(model, batch, settings, device)]
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset}, {settings.dtype}, random weights",
        caption=(
            "plain: mask and rotary table built anew in every layer, all code distances returned; "
            "x plain: median of the ratios run by run; agreement: share of equal ids, or the largest difference of pixels"
        ),
        names=("direction", "program"),
        extra={"x plain": ("times_faster_than_plain", ".2f"), "agreement": ("agreement", ".3g")},
    )


def _measure(model: ResTok, batch: int, settings: ResTokSettings, device: torch.device) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(settings.seed)
    side, plain = model.layout.image_size, PlainResTok(model)
    images = (torch.rand(batch, model.layout.in_channels, side, side, generator=rng) * 2 - 1).to(device)
    dtype = getattr(torch, settings.dtype)
    rows = []
    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        pyramid = model.encode(images)
        same = {
            "encode": float((plain.encode(images).concat() == pyramid.concat()).float().mean()),
            "decode": float((plain.decode(pyramid) - model.decode(pyramid)).abs().max()),
        }
        for direction, value in (("encode", images), ("decode", pyramid)):
            calls = {name: getattr(program, direction) for name, program in (("hiergen", model), ("plain", plain))}
            times = take_turns(
                {
                    "hiergen": functools.partial(calls["hiergen"], value),
                    "plain": plainly(functools.partial(calls["plain"], value)),
                },
                repeats=settings.repeats,
                device=device,
            )
            work = measure_work(functools.partial(calls["hiergen"], value))
            ratios = [slow / fast for slow, fast in zip(times["plain"], times["hiergen"], strict=True)]
            for name, seconds in times.items():
                rows.append(
                    {
                        "batch": batch,
                        "direction": direction,
                        "program": name,
                        **describe_times(seconds, batch),
                        **(work if name == "hiergen" else {}),
                        "times_faster_than_plain": statistics.median(ratios) if name == "hiergen" else 1.0,
                        "agreement": same[direction],
                    }
                )
    return rows
