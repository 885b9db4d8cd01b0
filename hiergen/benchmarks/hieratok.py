"""`hiergen bench hieratok`: scale-causal attention with a dense mask against one call per scale, and what the extra scales cost."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiergen.benchmarks.measuring.timing import describe_times, publish, random_model, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import HieraTokSettings
from hiergen.environment import choose_device
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.hieratok.model import HieraTok


def run(settings: HieraTokSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "rows" for each batch size, pass and form the median, fastest and
        slowest time in seconds, images per second, how many times faster than the dense mask it is (medians), and the largest
        difference of its images from those of the dense mask (None for the single-scale baseline, another model).
    """
    device = choose_device(settings.device)
    models = _random_models(settings)
    for model in models.values():
        nn.Module.to(model, device=device, dtype=getattr(torch, settings.dtype))
    rows = []
    for batch in settings.batches:
        rng = torch.Generator().manual_seed(settings.seed)
        spec = models["masked"].specs[-1]
        codes = torch.randn(batch, spec.num_tokens, spec.dim, generator=rng)
        codes = codes.to(device, getattr(torch, settings.dtype))
        for name, decode in (("forward", _forward), ("forward and backward", _forward_and_backward)):
            rows += _measure(models, codes, name, decode, settings.repeats)
    return publish(
        settings,
        device,
        rows,
        title=f"{settings.preset} decoder, {settings.dtype}",
        caption="masked: one call with a dense mask; grouped: one call per scale, keys cut; single scale: the baseline without pyramid",
        names=("pass", "form"),
        extra={"x masked": ("times_faster_than_masked", ".2f"), "difference": ("difference", ".1e")},
    )


def _random_models(settings: HieraTokSettings) -> dict[str, HieraTok]:
    overrides: dict[str, Any] = {"encoder_depth": 0}
    if settings.depth is not None:
        overrides["decoder_depth"] = settings.depth
    make = functools.partial(random_model, settings.preset, "HieraTok", seed=settings.seed, **overrides)
    masked, grouped = make(attention="masked"), make(attention="grouped")
    grouped.load_state_dict(masked.state_dict())
    finest = masked.specs[-1].grid or (1,)
    return {"masked": masked, "grouped": grouped, "single scale": make(scales=[finest[0]])}


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
    work = measure_work(calls["grouped"])
    images = {form: _forward(model, codes).float() for form, model in models.items()}
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return [
        {
            "batch": len(codes),
            "pass": name,
            "form": form,
            **describe_times(seconds[form], len(codes)),
            **(work if form == "grouped" else {}),
            "times_faster_than_masked": medians["masked"] / medians[form],
            "difference": None if form == "single scale" else (images[form] - images["masked"]).abs().max().item(),
        }
        for form in models
    ]
