"""`hiergen info [NAME]`: list presets and packaged models, or describe one; `NAME --plan`: its steps; `--plan NAME`: its training."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, get_args

import rich.box
import tyro
from rich.console import Console
from rich.table import Table

from hiergen.checked import Checked
from hiergen.cli import open_model, parts_of
from hiergen.config import nearest
from hiergen.telling import counted, say_next


@dataclasses.dataclass(frozen=True)
class InfoSettings(Checked):
    """List presets and packaged models, or describe one.

    Attributes:
        name: Name of a preset, a shell pattern such as "restok*", a packaged model, official weights, or the folder of a saved model. By
            default all are listed. Nothing is downloaded.
        plan: Preset or shell pattern to plan the training of: memory on each GPU, and hours. Without a value, the same as `--steps`.
        steps: Draw the plan of the model's stacks: which block runs at which step, and how.
        gpus: Number of GPUs of the plan.
        samples: Number of training samples of the plan.
        peak_tflops: Peak of one GPU of the plan in 10^12 operations per second; 989 is an H100's dense bfloat16.
        mfu: Share of the peak that training is assumed to reach in the plan.
        json: Print JSON: the list of presets, or the description.
    """

    name: tyro.conf.Positional[str] = "*"
    plan: str | None = None
    steps: bool = False
    gpus: int = 1
    samples: int = 1_000_000
    peak_tflops: float = 989.0
    mfu: float = 0.4
    json: bool = False


def main(args: list[str]) -> None:
    # `--plan PRESET` is about training, `NAME --plan` about the steps of its stacks.
    args = [
        "--steps" if word == "--plan" and (not following or following[0].startswith("--")) else word
        for word, following in ((word, args[place + 1 : place + 2]) for place, word in enumerate(args))
    ]
    # Without what `parse` does to switches: `--json` takes no word.
    settings = tyro.cli(InfoSettings, args=args, prog="hiergen info", config=(tyro.conf.FlagCreatePairsOff,))
    console = Console(width=None if sys.stdout.isatty() else 300)
    if settings.plan is not None:
        _describe_plan(console, settings, settings.plan)
        return
    from hiergen.pretrained.official import OFFICIAL, by_repository
    from hiergen.pretrained.packaged import packaged_models
    from hiergen.registry import list_presets

    packaged = {folder.name: folder for folder in packaged_models()}
    # The beginning of a name stands for all that begin so.
    names = list_presets(settings.name) or list_presets(f"{settings.name}*") or [settings.name]
    if Path(settings.name).is_dir() or settings.name in packaged:
        described = _describe_model(settings.name)
    elif (official := by_repository(settings.name)) in OFFICIAL:
        described = _describe_official(official)
    elif "." in settings.name and names == [settings.name]:
        raise ValueError(f"unknown weights {settings.name!r}{nearest(settings.name, {*OFFICIAL, *packaged})}")
    elif len(names) == 1:
        described = _describe_preset(names[0])
    else:
        _list(console, names, {} if settings.name != "*" else packaged, as_json=settings.json)
        return
    if settings.steps:
        _draw_steps(console, described)
    elif settings.json:
        print(json.dumps(described, indent=2))
    else:
        _show(console, described)


def _list(console: Console, names: list[str], packaged: dict[str, Path], *, as_json: bool) -> None:
    """Print presets by kind, then the models that come with the package."""
    from hiergen.pretrained.official import of_preset
    from hiergen.registry import Kind, presets

    kinds: tuple[Kind, ...] = get_args(Kind)
    found = {
        f"{kind}s": [
            {"name": name, "model": p.model, "source": p.source, "weights": ", ".join(of_preset(name))}
            for name, p in presets(kind).items()
            if name in names
        ]
        for kind in kinds
    }
    weights = []
    for name, folder in packaged.items():
        index = folder / "model_index.json"
        config = index if index.is_file() else folder / "config.json"
        model = json.loads(config.read_text())["_class_name"]
        weights.append(
            {
                "name": name,
                "model": model,
                "source": json.loads((folder / "demo.json").read_text())["title"],
                "weights": name,
            }
        )
    found |= {"packaged models": weights} if weights else {}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        if rows:
            table = Table(
                f"{counted(len(rows), title.removesuffix('s'))}", "model", "source", "weights", box=None, pad_edge=False
            )
            table.columns[0].no_wrap = table.columns[1].no_wrap = table.columns[3].no_wrap = True
            for row in sorted(rows, key=lambda row: (row["model"], row["name"])):
                table.add_row(*row.values())
            console.print(table, "")
    say_next("hiergen info NAME to describe one, hiergen recipes to train one")


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
    left_out = []
    for name in names:
        try:
            plan = plan_training(name, num_gpus=settings.gpus)
        except ValueError:
            if len(names) == 1:
                raise
            left_out.append(name)
            continue
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
    if left_out:
        console.print(f"left out, since there is nothing to plan: {', '.join(left_out)}", soft_wrap=True)


def _hours(flops: int, settings: InfoSettings) -> float:
    from hiergen.training.plan import training_hours

    peak = {"peak_tflops": settings.peak_tflops, "mfu": settings.mfu}
    return training_hours(flops, settings.samples, num_gpus=settings.gpus, **peak)


def _assumed(settings: InfoSettings) -> str:
    peak = f"{settings.gpus} GPUs of {settings.peak_tflops:g} TFLOP/s"
    return f"on {peak} if {settings.mfu:.0%} of that is reached (assumed, not measured)"


def _describe_preset(name: str) -> dict[str, Any]:
    import torch

    from hiergen.registry import create, get_preset

    preset = get_preset(name)
    # On the meta device a model of any size is described without being allocated.
    with torch.device("meta"):
        model = create(name)
    return {"name": name, "model": preset.model, "source": preset.source, "parts": [_describe(model)]}


def _describe_official(name: str) -> dict[str, Any]:
    """Return what is known of official weights before anything is downloaded; the sizes are those of their preset."""
    from hiergen.pretrained.official import OFFICIAL

    row, described = OFFICIAL[name], _describe_preset(name.partition(".")[0])
    weights: dict[str, Any] = {"license": row.license, "confirmed by": row.confirmed_by}
    if row.by_hand is not None:
        weights |= {"by hand": row.by_hand}
    else:
        weights |= {
            "repository": row.repository,
            "revision": row.revision or "main",
            "files": [file.replace("|", " or ") for file in row.files],
            "download": row.download or "about as large as the parameters",
        }
    if row.tokenizer is not None:
        weights |= {"tokenizer": row.tokenizer}
    return {**described, "name": name, "weights": weights}


def _describe_model(folder: str) -> dict[str, Any]:
    model = open_model(folder, "cpu")
    parts = [_describe(part) for part in (parts_of(model) or {"": model}).values()]
    return {"name": folder, "model": type(model).__name__, "source": "", "parts": parts}


def _describe(model: Any) -> dict[str, Any]:
    from hiergen.pipelines.labels import class_names

    levels = [
        {"tokens": spec.num_tokens, "grid": spec.grid, "channels": spec.dim, "vocabulary": spec.vocab_size}
        for spec in getattr(model, "specs", ())
    ]
    count = sum(parameter.numel() for parameter in model.parameters())
    described = {"class": type(model).__name__, "parameters": count, "levels": levels, "stacks": _stacks(model)}
    # What a preset makes has classes without names.
    names = class_names(model)
    return {**described, "classes": names} if names else described


def _stacks(model: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the steps of every stack of blocks, by its name in the model."""
    from hiergen.nn.depth.stack import BlockStack

    stacks = {name: part for name, part in model.named_modules() if isinstance(part, BlockStack) and len(part)}
    return {name: stack.plan.to_json() for name, stack in stacks.items()}


def _draw_steps(console: Console, described: dict[str, Any]) -> None:
    """Print the plan of every stack: first the blocks in the order in which they run, then what steps have of their own."""
    for part in described["parts"]:
        if not part["stacks"]:
            raise ValueError(f"{part['class']} has no stack of transformer blocks, so it has no steps to draw")
        for name, steps in part["stacks"].items():
            blocks = [step["block"] for step in steps]
            count = f"{counted(1 + max(blocks), 'block')}, {counted(len(steps), 'step')}"
            console.print(f"[bold]{part['class']}.{name}[/]  {count}: {' '.join(map(str, blocks))}", highlight=False)
            if all(len(step) == 1 for step in steps):
                continue
            table = Table("step", "block", "of its own", "reads", "then", box=None)
            for index, step in enumerate(steps):
                table.add_row(str(index), str(step["block"]), *_describe_step(step))
            console.print(table)


def _describe_step(step: dict[str, Any]) -> tuple[str, str, str]:
    """Return what a step has of its own, what it reads, and what follows it, in words."""
    own = [f"rank {step['rank']}"] if step.get("rank") else []
    own += ["vectors"] if step.get("own_vectors") else []
    reads = ["all but the branch before" if step.get("lag") else "all"]
    reads += ["with the loop's input"] if step.get("inject") else []
    reads += [f"in {step['groups']} groups"] if "groups" in step else []
    then = ["projection"] if step.get("project") else []
    then += ["exit"] if step.get("exit") else []
    return ", ".join(own) or "-", " ".join(reads), ", ".join(then) or "-"


def _show(console: Console, described: dict[str, Any]) -> None:
    from hiergen.pipelines.labels import list_names

    console.print(f"[bold]{described['name']}[/]  {described['model']}")
    if described["source"]:
        console.print(described["source"])
    for key, value in described.get("weights", {}).items():
        console.print(f"{key}: {', '.join(value) if isinstance(value, list) else value}", soft_wrap=True)
    for part in described["parts"]:
        size = f"{part['parameters'] * 4 / 2**20:,.0f} MiB in float32"
        console.print(f"{part['class']}: {part['parameters']:,} parameters, {size}")
        table = Table("level", "tokens", "grid", "channels", "vocabulary", box=None)
        for index, level in enumerate(part["levels"]):
            vocabulary = "continuous" if level["vocabulary"] is None else f"{level['vocabulary']:,}"
            grid = " x ".join(map(str, level["grid"] or ())) or "-"
            table.add_row(str(index), str(level["tokens"]), grid, str(level["channels"]), vocabulary)
        if part["levels"]:
            console.print(table)
        if "classes" in part:
            console.print(list_names(part["classes"]), markup=False, highlight=False)
