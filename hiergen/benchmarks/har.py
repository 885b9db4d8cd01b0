"""`hiergen bench har`: how long HAR takes to sample, with and without its cache, beside a plain transcription on the same weights."""

from __future__ import annotations

import dataclasses
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hiergen.benchmarks.har_plain import PlainSampler
from hiergen.generators.level_ar import LevelAR, LevelARSettings
from hiergen.registry import create, get_preset

#: Returns the ids of class labels.
Sampler = Callable[[Tensor, torch.Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the sampling of HAR.

    Attributes:
        preset: A generator preset with `layout="level"`; its weights are random.
        depth: Transformer blocks, if fewer or more than the preset's are wanted.
        batches: Numbers of images sampled together.
        repeats: Measured runs of each sampler; they take turns, so that a slow spell of the machine meets all of them.
        guidance_scale: Of the published step schedule; 1 samples without guidance.
        device: "auto" is CUDA where there is one.
        dtype: Of the weights.
        seed: Of weights and draws.
    """

    preset: str = "har-b"
    depth: int | None = None
    batches: tuple[int, ...] = (1, 8)
    repeats: int = 5
    guidance_scale: float = 3.75
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}, expected at least 1")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches is {self.batches}, expected at least one, each at least 1")


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size and sampler the median, fastest and slowest
        time of a batch in seconds, images a second, how many times faster than each plain sampler it is (medians), and the share
        of ids that equal those of the cached sampler with the same seed (1, but for rounding near the edge of a draw).
    """
    device = torch.device(_device_name(settings.device))
    model = _random_model(settings)
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    samplers = _samplers(model, settings)
    rows = [row for batch in settings.batches for row in _measure_batch(samplers, batch, model, settings)]
    machine = _machine(device)
    _print_table(settings, machine, rows)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}


def _random_model(settings: Settings) -> LevelAR:
    kind = get_preset(settings.preset).model
    if kind != "LevelAR":
        raise ValueError(f"preset {settings.preset!r} is a {kind}, expected a LevelAR")
    overrides = {} if settings.depth is None else {"depth": settings.depth}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: LevelAR = create(settings.preset, **overrides)
        # A new head is zero, and all ids would be drawn from the same flat distribution.
        nn.init.normal_(model.head.weight, std=0.1)
    return model.eval()


def _samplers(model: LevelAR, settings: Settings) -> dict[str, Sampler]:
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
    samplers: dict[str, Sampler], batch: int, model: LevelAR, settings: Settings
) -> list[dict[str, Any]]:
    labels = (torch.arange(batch) % model.config["num_classes"]).to(model.device)
    times: dict[str, list[float]] = {name: [] for name in samplers}
    ids: dict[str, Tensor] = {}
    # The first round warms up.
    for repeat in range(settings.repeats + 1):
        for name, sampler in samplers.items():
            rng = torch.Generator(model.device).manual_seed(settings.seed)
            _wait(model.device)
            started = time.perf_counter()
            ids[name] = sampler(labels, rng)
            _wait(model.device)
            if repeat:
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "batch": batch,
            "sampler": name,
            "median_s": medians[name],
            "min_s": min(times[name]),
            "max_s": max(times[name]),
            "images_per_s": batch / medians[name],
            "times_faster_than_plain": medians["plain"] / medians[name],
            "times_faster_than_rebuilding": medians["rebuilding"] / medians[name],
            "equal_ids": (ids[name] == ids["cached"]).float().mean().item(),
        }
        for name in samplers
    ]


def _print_table(settings: Settings, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"{settings.preset}, {settings.dtype}, {machine['device']}, median of {settings.repeats}",
        caption="plain: a padded cache under a mask; rebuilding: the same with mask and rotary table built anew in every layer; "
        "x: times faster than",
    )
    for column in ("batch", "sampler", "ms", "range", "img/s", "x plain", "x rebuilding", "same ids"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            row["sampler"],
            f"{1000 * row['median_s']:.1f}",
            f"{1000 * row['min_s']:.1f} - {1000 * row['max_s']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{row['times_faster_than_plain']:.2f}",
            f"{row['times_faster_than_rebuilding']:.2f}",
            f"{row['equal_ids']:.1%}",
        )
    Console().print(table)


def _device_name(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _machine(device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
