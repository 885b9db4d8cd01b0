"""`hiergen bench attention`: the backends of dense and level-masked attention, beside PyTorch's fused attention under a dense mask."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hiergen.benchmarks.measuring.timing import describe_times, publish, take_turns
from hiergen.benchmarks.measuring.work import measure_work
from hiergen.benchmarks.settings import AttentionSettings
from hiergen.environment import choose_device
from hiergen.kernels.attention import attention
from hiergen.kernels.spans import Spans

#: Tokens of each group of the layouts: HAR's first two levels are one token each, VAR's and HieraTok's levels are squares.
GROUPS = {
    "har": (1, 1, 2, 4, 8, 16, 32, 64),
    "var": tuple(side**2 for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)),
    "hieratok": tuple(side**2 for side in (1, 2, 4, 8, 16)),
}


def run(settings: AttentionSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers.

    Returns:
        JSON values: the settings, the machine, under "rows" for each layout, pass and backend the times in seconds, how many times faster
        than "sdpa" under a dense mask it is (medians), the largest difference of its output from the formula in float64, and the
        products that the mask leaves, and under "refused" why a backend did not run, by layout, pass and backend.
    """
    device = choose_device(settings.device)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for layout in settings.layouts:
        spans = None if layout == "dense" else _spans(GROUPS[layout])
        rng = torch.Generator().manual_seed(settings.seed)
        shape = (settings.batch, settings.heads, settings.tokens if spans is None else spans.num_queries, settings.dim)
        exact = [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3)]
        inputs = [x.to(device, getattr(torch, settings.dtype)) for x in exact]
        wanted = attention(*exact, spans=spans, backend="reference")
        for name, call in (("forward", _forward), ("forward and backward", _forward_and_backward)):
            calls, reasons = _runnable(call, inputs, spans, settings)
            refused |= {f"{layout}, {name}, {backend}": reason for backend, reason in reasons.items()}
            rows += _measure(layout, name, calls, wanted, settings)
    result = publish(
        settings,
        device,
        rows,
        title=f"{settings.heads} heads of {settings.dim}, {settings.dtype}",
        caption="x sdpa: times faster than PyTorch's fused attention, under a dense mask where the layout has one",
        names=("layout", "pass", "backend"),
        extra={"x sdpa": ("times_faster_than_sdpa", ".2f"), "difference": ("difference", ".1e")},
    )
    for what, reason in refused.items():
        print(f"{what}: {reason}")
    return result | {"refused": refused}


def _spans(sizes: tuple[int, ...]) -> Spans:
    ends = [sum(sizes[: count + 1]) for count in range(len(sizes))]
    return Spans(tuple(zip([0, *ends[:-1]], ends, strict=True)))


@torch.no_grad()
def _forward(inputs: list[Tensor], spans: Spans | None, backend: str) -> Tensor:
    return attention(*inputs, spans=spans, backend=backend)


def _forward_and_backward(inputs: list[Tensor], spans: Spans | None, backend: str) -> Tensor:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attention(*leaves, spans=spans, backend=backend)
    out.backward(torch.ones_like(out))
    return out.detach()


def _runnable(
    call: Callable[..., Tensor], inputs: list[Tensor], spans: Spans | None, settings: AttentionSettings
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Return the calls of the backends that run here, and why the others do not."""
    calls: dict[str, Callable[[], Tensor]] = {}
    reasons: dict[str, str] = {}
    for backend in dict.fromkeys(("sdpa", *settings.backends)):
        once = functools.partial(call, inputs, spans, backend)
        try:
            once()
        except RuntimeError as error:
            reasons[backend] = str(error)
        else:
            calls[backend] = once
    return calls, reasons


def _measure(
    layout: str, name: str, calls: dict[str, Callable[[], Tensor]], wanted: Tensor, settings: AttentionSettings
) -> list[dict[str, Any]]:
    seconds = take_turns(calls, repeats=settings.repeats, device=choose_device(settings.device))
    # What the mask leaves to do, whichever backend does it.
    work = measure_work(calls.get("grouped", calls["sdpa"]))
    medians = {backend: statistics.median(times) for backend, times in seconds.items()}
    return [
        {
            "batch": settings.batch,
            "layout": layout,
            "pass": name,
            "backend": backend,
            **describe_times(times, settings.batch),
            "times_faster_than_sdpa": medians["sdpa"] / medians[backend],
            "difference": float((calls[backend]().cpu().double() - wanted).abs().max()),
            **work,
        }
        for backend, times in seconds.items()
    ]
