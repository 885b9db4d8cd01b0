"""`hiergen info [NAME]`: list presets, or describe one, or a saved model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from hiergen.config import parse


@dataclasses.dataclass(frozen=True)
class InfoSettings:
    """List presets, or describe one.

    Attributes:
        name: A preset, a shell pattern such as "restok*", or the folder of a saved model. Everything by default.
    """

    name: tyro.conf.Positional[str] = "*"


def main(args: list[str]) -> None:
    settings = parse(InfoSettings(), args, prog="hiergen info")
    console = Console()
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
