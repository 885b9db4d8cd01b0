"""`hiergen info [NAME]`: list presets, or describe one, or a saved model; `--plan NAME`: what training one takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import rich.box
import tyro
from rich.console import Console
from rich.table import Table

from hiergen.checked import Checked
from hiergen.config import parse


@dataclasses.dataclass(frozen=True)
class InfoSettings(Checked):
    """List presets, or describe one.

    Attributes:
        name: Name of a preset, a shell pattern such as "restok*", or the folder of a saved model. By default all presets are listed.
        plan: Preset or shell pattern to plan the training of: memory on each GPU, and hours.
        gpus: Number of GPUs of the plan.
        samples: Number of training samples of the plan.
        peak_tflops: Peak of one GPU of the plan in 10^12 operations per second; 989 is an H100's dense bfloat16.
        mfu: Share of the peak that training is assumed to reach in the plan.
    """

    name: tyro.conf.Positional[str] = "*"
    plan: str | None = None
    gpus: int = 1
    samples: int = 1_000_000
    peak_tflops: float = 989.0
    mfu: float = 0.4


def main(args: list[str]) -> None:
    settings = parse(InfoSettings(), args, prog="hiergen info")
    console = Console()
    if settings.plan is not None:
        _describe_plan(console, settings, settings.plan)
        return
    if Path(settings.name).is_dir():
        _describe_model(console, settings.name)
        return
    from hiergen.registry import get_preset, list_presets

    names = list_presets(settings.name) or [settings.name]
    if len(names) == 1:
        _describe_preset(console, names[0])
        return
    table = Table("preset", "model", "source", title=f"{len(names)} presets")
    for name in names:
        preset = get_preset(name)
        table.add_row(name, preset.model, preset.source)
    console.print(table)


def _describe_plan(console: Console, settings: InfoSettings, preset: str) -> None:
    from hiergen.registry import list_presets
    from hiergen.training.plan import plan_training

    if preset not in list_presets(preset):
        _compare_plans(console, settings, list_presets(preset) or [preset])
        return
    plan = plan_training(preset, num_gpus=settings.gpus)
    table = Table("on each GPU", "GiB", title=f"{preset}: {plan.parameters:,} trained parameters")
    for name in ("weight", "gradient", "moment", "average", "fixed"):
        label = "all that does not grow with the batch" if name == "fixed" else f"{name}s"
        table.add_row(label, f"{getattr(plan, f'{name}_bytes') / 2**30:.2f}")
    table.add_row("activations per sample, float32", f"{plan.step.activation_bytes / 2**30:.3f}")
    console.print(table)
    console.print(
        f"{plan.step.flops:,} FLOPs per sample, forward and backward; {settings.samples:,} samples take "
        f"{_hours(plan.step.flops, settings):.1f} hours {_assumed(settings)}"
    )


def _compare_plans(console: Console, settings: InfoSettings, names: list[str]) -> None:
    from hiergen.training.plan import plan_training

    table = Table(
        *(
            "preset",
            "parameters (M)",
            "fixed per GPU (GiB)",
            "activations per sample (GiB)",
            "GFLOPs per sample",
            "hours",
        ),
        box=rich.box.MARKDOWN,
    )
    for name in names:
        plan = plan_training(name, num_gpus=settings.gpus)
        numbers = (
            f"{plan.parameters / 1e6:,.1f}",
            f"{plan.fixed_bytes / 2**30:.2f}",
            f"{plan.step.activation_bytes / 2**30:.3f}",
            f"{plan.step.flops / 1e9:,.1f}",
            f"{_hours(plan.step.flops, settings):.2f}",
        )
        table.add_row(name, *numbers)
    # As wide as it is: a table that is wrapped is no Markdown.
    Console(width=max(console.width, 140)).print(table)
    console.print(f"hours: for {settings.samples:,} samples {_assumed(settings)}", soft_wrap=True)


def _hours(flops: int, settings: InfoSettings) -> float:
    from hiergen.training.plan import training_hours

    peak = {"peak_tflops": settings.peak_tflops, "mfu": settings.mfu}
    return training_hours(flops, settings.samples, num_gpus=settings.gpus, **peak)


def _assumed(settings: InfoSettings) -> str:
    peak = f"{settings.gpus} GPUs of {settings.peak_tflops:g} TFLOP/s"
    return f"on {peak} if {settings.mfu:.0%} of that is reached (assumed, not measured)"


def _describe_preset(console: Console, name: str) -> None:
    import torch

    from hiergen.registry import create, get_preset

    preset = get_preset(name)
    # On the meta device a model of any size is described without being allocated.
    with torch.device("meta"):
        model = create(name)
    console.print(f"[bold]{name}[/]  {preset.model}\n{preset.source}")
    _describe(console, model)


def _describe_model(console: Console, folder: str) -> None:
    from hiergen.pipelines.loading import from_pretrained

    model = from_pretrained(folder)
    console.print(f"[bold]{folder}[/]  {type(model).__name__}")
    for part in getattr(model, "components", {"": model}).values():
        _describe(console, part)


def _describe(console: Console, model: Any) -> None:
    count = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{type(model).__name__}: {count:,} parameters, {count * 4 / 2**20:,.0f} MiB in float32")
    table = Table("level", "tokens", "grid", "channels", "vocabulary")
    for index, spec in enumerate(model.specs):
        vocabulary = "continuous" if spec.vocab_size is None else f"{spec.vocab_size:,}"
        table.add_row(str(index), str(spec.num_tokens), str(spec.grid or "-"), str(spec.dim), vocabulary)
    console.print(table)
