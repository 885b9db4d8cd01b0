"""`hiergen bench restok`: images a second through encoder and decoder, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from hiergen.benchmarks.restok_plain import PlainResTok
from hiergen.benchmarks.timing import choose_device, describe_machine, take_turns
from hiergen.registry import create, get_preset
from hiergen.tokenizers.restok import ResTok


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time ResTok.

    Attributes:
        preset: A ResTok preset; its weights are random.
        batches: Numbers of images in a pass.
        repeats: Measured runs of each program; they take turns.
        device: "auto" is CUDA where there is one.
        dtype: Autocast, where not float32.
        seed: Of weights and images.
    """

    preset: str = "restok-ss-128"
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}, expected at least 1")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches is {self.batches}, expected at least one, each at least 1")


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers as JSON values.

    Raises:
        ValueError: If the preset is no ResTok.
    """
    if get_preset(settings.preset).model != "ResTok":
        raise ValueError(f"preset {settings.preset!r} is a {get_preset(settings.preset).model}, expected a ResTok")
    device = choose_device(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: ResTok = create(settings.preset).eval()
    nn.Module.to(model, device)
    rows = [row for batch in settings.batches for row in _measure(model, batch, settings, device)]
    machine = describe_machine(device)
    _print(settings, machine, rows)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}


def _measure(model: ResTok, batch: int, settings: Settings, device: torch.device) -> list[dict[str, Any]]:
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
                {name: functools.partial(call, value) for name, call in calls.items()},
                repeats=settings.repeats,
                device=device,
            )
            ratios = [slow / fast for slow, fast in zip(times["plain"], times["hiergen"], strict=True)]
            for name, seconds in times.items():
                rows.append(
                    {
                        "batch": batch,
                        "direction": direction,
                        "program": name,
                        "median_s": statistics.median(seconds),
                        "min_s": min(seconds),
                        "max_s": max(seconds),
                        "images_per_s": batch / statistics.median(seconds),
                        "times_faster_than_plain": statistics.median(ratios) if name == "hiergen" else 1.0,
                        "agreement": same[direction],
                    }
                )
    return rows


def _print(settings: Settings, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"{settings.preset}, {settings.dtype}, {machine['device']}, {machine['threads']} threads, "
        f"median of {settings.repeats}, random weights",
        caption="plain: mask and rotary table built anew in every layer, all code distances returned; "
        "x plain: median of the ratios run by run; agreement: share of equal ids, or the largest difference of pixels",
    )
    for column in ("batch", "direction", "program", "ms", "range", "img/s", "x plain", "agreement"):
        table.add_column(column, justify="left" if column in ("direction", "program") else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            row["direction"],
            row["program"],
            f"{1e3 * row['median_s']:.1f}",
            f"{1e3 * row['min_s']:.1f}-{1e3 * row['max_s']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{row['times_faster_than_plain']:.2f}",
            f"{row['agreement']:.3g}",
        )
    Console().print(table)
