"""`hiergen bench mar`: how long MAR takes to sample, beside a plain transcription of the official loop on the same weights."""

from __future__ import annotations

import copy
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

from hiergen.benchmarks.mar_plain import PlainSampler
from hiergen.generators.masked import MaskedAR, MaskedARSettings
from hiergen.registry import create, get_preset

#: Returns the tokens of class labels.
Sampler = Callable[[Tensor, torch.Generator], Tensor]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the sampling of MAR.

    Attributes:
        preset: A generator preset of class-conditional MAR; its weights are random.
        batches: Numbers of images sampled together.
        num_steps: Unmasking steps.
        head_steps: Diffusion steps a token.
        guidance_scale: 1 samples without guidance.
        repeats: Measured runs of each sampler; they take turns, so that a slow spell of the machine meets both.
        compile: Time the compiled sampler too; what compiling takes is not counted.
        compile_mode: Of `torch.compile`; "reduce-overhead" records CUDA graphs.
        device: "auto" is CUDA where there is one.
        seed: Of weights and draws.
    """

    preset: str = "mar-b"
    batches: tuple[int, ...] = (1, 8)
    num_steps: int = 64
    head_steps: int = 100
    guidance_scale: float = 2.9
    repeats: int = 3
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead"] = "default"
    device: str = "auto"
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
        time of a batch in seconds, images a second, how many times faster than the plain sampler it is (medians), and the largest
        relative difference of a sampler's tokens from the plain one's when both are given the same noise.
    """
    name = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    model = _random_model(settings)
    nn.Module.to(model, device)
    rows = [row for batch in settings.batches for row in _measure_batch(model, batch, settings)]
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    _print_table(settings, machine, rows)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}


def _random_model(settings: Settings) -> MaskedAR:
    kind = get_preset(settings.preset).model
    if kind != "MaskedAR":
        raise ValueError(f"preset {settings.preset!r} is a {kind}, expected a MaskedAR")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model: MaskedAR = create(settings.preset)
        # A new head is zero and would answer every condition alike.
        for layer in (model.head.output, *(block.modulation for block in model.head.blocks)):
            nn.init.normal_(layer.weight, std=0.02)
    return model.eval()


def _measure_batch(model: MaskedAR, batch: int, settings: Settings) -> list[dict[str, Any]]:
    labels = (torch.arange(batch) % model.config["num_classes"]).to(model.device)
    sampling = MaskedARSettings(
        num_steps=settings.num_steps, head_steps=settings.head_steps, guidance_scale=settings.guidance_scale
    )
    plain = PlainSampler(model)
    samplers: dict[str, Sampler] = {
        "hiergen": lambda labels, rng: model.generate(labels, sampling, rng=rng).concat(),
        "plain": lambda labels, rng: plain.generate(labels, sampling, rng=rng),
    }
    if settings.compile:
        compiled = copy.deepcopy(model).compile_sampling(mode=settings.compile_mode)
        samplers["compiled"] = lambda labels, rng: compiled.generate(labels, sampling, rng=rng).concat()
    times: dict[str, list[float]] = {name: [] for name in samplers}
    # The first round warms up.
    for repeat in range(settings.repeats + 1):
        for name, sampler in samplers.items():
            seconds = _seconds(sampler, labels, settings.seed)
            if repeat:
                times[name].append(seconds)
    ours = {
        name: model.standardize(sampler(labels, _rng(labels, settings.seed)))
        for name, sampler in samplers.items()
        if name != "plain"
    }
    theirs = plain.generate(labels, sampling, rng=_rng(labels, settings.seed), shared_noise=True)
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
            "relative_difference": float((ours.get(name, ours["hiergen"]) - theirs).abs().max() / theirs.abs().max()),
        }
        for name in samplers
    ]


def _seconds(sampler: Sampler, labels: Tensor, seed: int) -> float:
    rng = _rng(labels, seed)
    _wait(labels.device)
    started = time.perf_counter()
    sampler(labels, rng)
    _wait(labels.device)
    return time.perf_counter() - started


def _rng(labels: Tensor, seed: int) -> torch.Generator:
    return torch.Generator(labels.device).manual_seed(seed)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _print_table(settings: Settings, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"{settings.preset}, {settings.num_steps} steps, {settings.head_steps} head steps, {machine['device']}, "
        f"median of {settings.repeats}",
        caption="x plain: how many times faster than a plain transcription of the official loop on the same weights",
    )
    for column in ("batch", "sampler", "ms", "fastest - slowest", "images/s", "x plain", "difference"):
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            row["sampler"],
            f"{1000 * row['median_s']:.1f}",
            f"{1000 * row['min_s']:.1f} - {1000 * row['max_s']:.1f}",
            f"{row['images_per_s']:.3f}",
            f"{row['times_faster_than_plain']:.2f}",
            f"{row['relative_difference']:.1e}",
        )
    Console().print(table)
