"""`hiergen bench hieratok`: scale-causal attention with a dense mask against one call a scale, and what the extra scales cost."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hiergen.benchmarks.timing import choose_device, describe_machine, take_turns
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create, get_preset
from hiergen.tokenizers.hieratok import HieraTok


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time HieraTok's decoder, forward alone and with the backward pass.

    Attributes:
        preset: A HieraTok preset; its weights are random.
        depth: Decoder blocks, if fewer or more than the preset's are wanted.
        batches: Numbers of images decoded together.
        repeats: Measured runs of each form; they take turns.
        device: "auto" is CUDA where there is one.
        dtype: Of weights and latents.
        seed: Of weights and latents.
    """

    preset: str = "hieratok-b"
    depth: int | None = None
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
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size, pass and form the median, fastest and
        slowest time in seconds, images a second, how many times faster than the dense mask it is (medians), and the largest
        difference of its images from those of the dense mask (None for the single-scale baseline, another model).
    """
    device = choose_device(settings.device)
    models = {name: _place(model, device, settings) for name, model in _random_models(settings).items()}
    rows = []
    for batch in settings.batches:
        rng = torch.Generator().manual_seed(settings.seed)
        spec = models["masked"].specs[-1]
        codes = torch.randn(batch, spec.num_tokens, spec.dim, generator=rng)
        codes = codes.to(device, getattr(torch, settings.dtype))
        for name, decode in (("forward", _forward), ("forward and backward", _forward_and_backward)):
            rows += _measure(models, codes, name, decode, settings.repeats)
    machine = describe_machine(device)
    _print_table(settings, machine, rows)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}


def _random_models(settings: Settings) -> dict[str, HieraTok]:
    kind = get_preset(settings.preset).model
    if kind != "HieraTok":
        raise ValueError(f"preset {settings.preset!r} is a {kind}, expected a HieraTok")
    overrides = {} if settings.depth is None else {"decoder_depth": settings.depth}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        masked: HieraTok = create(settings.preset, attention="masked", encoder_depth=0, **overrides)
        finest = masked.specs[-1].grid or (1,)
        single: HieraTok = create(settings.preset, scales=[finest[0]], encoder_depth=0, **overrides)
        grouped: HieraTok = create(settings.preset, attention="grouped", encoder_depth=0, **overrides)
    grouped.load_state_dict(masked.state_dict())
    return {"masked": masked, "grouped": grouped, "single scale": single}


def _place(model: HieraTok, device: torch.device, settings: Settings) -> HieraTok:
    nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    return model.eval()


@torch.no_grad()
def _forward(model: HieraTok, codes: Tensor) -> Tensor:
    return model.decode(TokenPyramid((codes,), model.specs))


def _forward_and_backward(model: HieraTok, codes: Tensor) -> Tensor:
    model.zero_grad(set_to_none=True)
    image = model.decode(TokenPyramid((codes,), model.specs))
    image.float().square().mean().backward()
    return image.detach()


def _measure(
    models: dict[str, HieraTok],
    codes: Tensor,
    name: str,
    decode: Callable[[HieraTok, Tensor], Tensor],
    repeats: int,
) -> list[dict[str, Any]]:
    calls = {form: lambda model=model: decode(model, codes) for form, model in models.items()}
    seconds = take_turns(calls, repeats=repeats, device=codes.device)
    images = {form: _forward(model, codes).float() for form, model in models.items()}
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return [
        {
            "batch": len(codes),
            "pass": name,
            "form": form,
            "median_s": medians[form],
            "min_s": min(seconds[form]),
            "max_s": max(seconds[form]),
            "images_per_s": len(codes) / medians[form],
            "times_faster_than_masked": medians["masked"] / medians[form],
            "difference": None if form == "single scale" else (images[form] - images["masked"]).abs().max().item(),
        }
        for form in models
    ]


def _print_table(settings: Settings, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    table = Table(
        title=f"{settings.preset} decoder, {settings.dtype}, {machine['device']}, median of {settings.repeats}",
        caption="masked: one call with a dense mask; grouped: one call a scale, keys cut; single scale: the baseline without pyramid",
    )
    for column in ("batch", "pass", "form", "ms", "range", "img/s", "x masked", "difference"):
        table.add_column(column, justify="left" if column in ("pass", "form") else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            row["pass"],
            row["form"],
            f"{1000 * row['median_s']:.1f}",
            f"{1000 * row['min_s']:.1f} - {1000 * row['max_s']:.1f}",
            f"{row['images_per_s']:.2f}",
            f"{row['times_faster_than_masked']:.2f}",
            "-" if row["difference"] is None else f"{row['difference']:.1e}",
        )
    Console().print(table)
