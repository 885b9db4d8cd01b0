"""`hiergen bench psa`: how fast pyramid sparse attention runs beside dense attention and a binary block mask, and how far it is from exact.

In one run and on the same inputs it times every dense backend of PyTorch, a binary block mask of equal compute, and pyramid
attention, alone and with its preparation split out. Times are medians. On a CPU pyramid attention is plain PyTorch that gathers the
keys each query block reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.benchmarks.measuring.attention_inputs import structured_heads
from hiergen.benchmarks.measuring.timing import describe_machine, show, take_turns
from hiergen.benchmarks.settings import PSASettings
from hiergen.environment import choose_device
from hiergen.kernels.names import ImportanceName
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan, draw_plan, make_plan, pyramid_sparse_attention
from hiergen.kernels.pyramid_attention.backends import dense
from hiergen.kernels.pyramid_attention.config import OfficialRules, density_of_bounds
from hiergen.kernels.pyramid_attention.planning.assignment import assign_pools
from hiergen.kernels.pyramid_attention.planning.importance import ImportanceRequest, estimate_importance
from hiergen.kernels.pyramid_attention.planning.lists import with_lists
from hiergen.kernels.pyramid_attention.pooling import build_pyramid
from hiergen.kernels.pyramid_attention.triton.availability import runs_triton
from hiergen.kernels.pyramid_attention.triton.operators import key_pyramid
from hiergen.training.reporting.throughput import measure_peak


def run(settings: PSASettings) -> dict[str, Any]:
    """Measure, print a table and return the numbers, written too if asked: times in ms, rates in TFLOP/s, errors relative to exact."""
    dtype, device = getattr(torch, settings.dtype), choose_device(settings.device)
    rng = torch.Generator().manual_seed(settings.seed)
    grid = video_grid(settings.tokens)
    drawn = min(settings.drawn_heads or settings.heads, settings.heads)
    repeats = -(-settings.heads // drawn)
    q, k, v = (
        x.to(device, dtype).repeat(1, repeats, 1, 1)[:, : settings.heads].contiguous()
        for x in structured_heads(grid, heads=drawn, dim=settings.dim, rng=rng)
    )
    config = config_of_density(settings.density, settings.query_block, settings.key_block, settings.importance)
    plan = make_plan(q, k, config)
    plans = {"pyramid": plan, "binary mask": make_plan(q, k, binary_config(config, plan))}
    rows = torch.arange(0, q.shape[2], max(q.shape[2] // 256, 1), device=device)
    exact = F.scaled_dot_product_attention(q[:, :, rows].float(), k.float(), v.float())

    calls, reasons = _dense_calls(q, k, v)
    calls |= {name: _sparse_call(q, k, v, plan) for name, plan in plans.items()}
    densities = {name: float(plan.density) for name, plan in plans.items()}
    if device.type == "cuda":
        calls["pyramid, FlexAttention"] = lambda: pyramid_sparse_attention(
            q, k, v, plan=plans["pyramid"], backend="flex"
        )
        calls["binary mask, FlexAttention"] = lambda: pyramid_sparse_attention(
            q, k, v, plan=plans["binary mask"], backend="flex"
        )
        calls["pyramid, attention alone"] = _kernel_alone(q, k, v, plans["pyramid"])
    calls["pyramid, all in"] = lambda: pyramid_sparse_attention(q, k, v, config=config, backend=sparse_backend(q))
    seconds = take_turns(calls, repeats=settings.repeats, device=device)
    peak = measure_peak(device, dtype)
    flops = 4.0 * q.shape[2] ** 2 * settings.dim * settings.heads
    entries: dict[str, dict[str, Any]] = {name: {"reason": reason} for name, reason in reasons.items()}
    for name, call in calls.items():
        out = call()[:, :, rows].float()
        density = 1.0 if name.startswith("dense") else densities[name.split(",")[0]]
        ms = 1e3 * statistics.median(seconds[name])
        rate = flops * density / ms / 1e9
        error = float((out - exact).norm() / exact.norm())
        entries[name] = {"ms": ms, "density": density, "error": error, "tflops": rate, "share_of_peak": rate / peak}
    result = {
        "settings": {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(settings).items()},
        "grid": list(grid),
        **describe_machine(device),
        "matmul_peak_tflops": peak,
        "bound_ms": flops * settings.density / peak / 1e9,
        "preparation_ms": _preparation(q, k, v, config, settings.repeats),
        "attention": entries,
    }
    _print(result)
    if settings.output is not None:
        write(result, settings.output)
        draw_plan(plan, settings.output / "plan.png")
    return result


def sparse_backend(q: Tensor) -> str:
    """Return the backend to time: on a CPU "auto" might take dense attention, and dense would be compared with dense."""
    return "gather" if q.device.type == "cpu" else "auto"


def describe_pay(dense_s: float, sparse_s: Sequence[float]) -> str:
    """Return a sentence on whether sparse attention was faster than dense here, from the seconds of the same work."""
    ratios = sorted(seconds / dense_s for seconds in sparse_s)
    if ratios[0] < 1:
        return f"Sparse attention pays here: it took {ratios[0]:.2f} times the seconds of dense attention."
    times = f"{ratios[0]:.2f}" + (f" to {ratios[-1]:.2f}" if len(ratios) > 1 else "")
    return (
        f"Sparse attention does not pay here: it took {times} times the seconds of dense attention. "
        "Clips of few tokens are too short for it."
    )


def measure_pay(num_tokens: int, config: PSAConfig, *, heads: int = 2, repeats: int = 3) -> tuple[float, float]:
    """Return the seconds that dense and pyramid attention take on this machine's processor, planning included: medians, taking turns."""
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, num_tokens, 64, generator=rng) for _ in range(3))
    calls: dict[str, Callable[[], Any]] = {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "sparse": lambda: pyramid_sparse_attention(q, k, v, config=config, backend=sparse_backend(q)),
    }
    seconds = take_turns(calls, repeats=repeats, device=q.device)
    return statistics.median(seconds["dense"]), statistics.median(seconds["sparse"])


def describe_default(num_tokens: int, config: PSAConfig) -> str:
    """Return a sentence on which attention "auto" takes for a sequence on a CPU, and why."""
    if why := dense.pays(num_tokens, config):
        return f"A clip is {num_tokens:,} tokens, so few that dense attention is the default: {why}."
    return f"A clip is {num_tokens:,} tokens, at which sparse attention of this density was not measured to be slower on CPUs."


def video_grid(tokens: int) -> tuple[int, int, int]:
    """Return frames, rows and columns of a video of about 16 : 9 with at most `tokens` tokens, 21 : 45 : 80 at 75,600."""
    side = (tokens / 75_600) ** (1 / 3)
    rows, columns = max(round(45 * side), 1), max(round(80 * side), 1)
    if rows * columns > tokens:
        rows, columns = 1, tokens
    return max(tokens // (rows * columns), 1), rows, columns


def config_of_density(density: float, query_block: int, key_block: int, importance: ImportanceName) -> PSAConfig:
    """Return quotas in the proportions of the default preset (.10, .05, 0, .20 at pools 1, 2, 4, 8) that compute `density`."""
    pairs = ((1, 0.10), (2, 0.15), (4, 0.15), (8, 0.35))

    def scaled(factor: float) -> tuple[tuple[int, float], ...]:
        return tuple((pool, min(round(bound * factor, 9), 1.0)) for pool, bound in pairs)

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if density_of_bounds(scaled(middle)) < density else (low, middle)
    return PSAConfig(
        bounds=scaled(high),
        query_block=query_block,
        key_block=key_block,
        importance=importance,
        rules=OfficialRules(rounding_tile=max(key_block // 8, 1)),
    )


def binary_config(config: PSAConfig, plan: PyramidPlan) -> PSAConfig:
    """Return a plain block mask that computes as much as `plan` does after whole blocks were counted, or up to one block per row more."""
    columns = plan.pools.shape[3]
    blocks = math.ceil(float(plan.density) * columns - 1e-4)
    return dataclasses.replace(config, mode="quota", bounds=((1, min((blocks + 0.5) / columns, 1.0)),))


def write(result: dict[str, Any], folder: Path) -> None:
    """Write `psa.json` and `psa.png`, bars of time with the error beside them."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "psa.json").write_text(json.dumps(result, indent=2) + "\n")
    entries = {name: entry for name, entry in result["attention"].items() if "ms" in entry}
    figure = Figure(figsize=(8, 0.5 * len(entries) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(entries), [entry["ms"] for entry in entries.values()], color="#2171b5")
    axes.bar_label(bars, [f"{entry['ms']:.2f} ms, error {entry['error']:.1e}" for entry in entries.values()], padding=3)
    axes.axvline(result["bound_ms"], color="#666666", linestyle=":")
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlabel(
        f"time (ms) on {result['device']}; dotted: {result['settings']['density']} of the dense product at matmul speed"
    )
    figure.savefig(folder / "psa.png", dpi=120)


def _dense_calls(q: Tensor, k: Tensor, v: Tensor) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return the dense backends that run here, and why the others do not."""
    from torch.nn.attention import SDPBackend

    names = {
        "dense, flash": SDPBackend.FLASH_ATTENTION,
        "dense, cuDNN": SDPBackend.CUDNN_ATTENTION,
        "dense, efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    calls: dict[str, Callable[[], Any]] = {}
    reasons = {}
    for name, backend in names.items():
        if q.device.type != "cuda" and backend is not SDPBackend.FLASH_ATTENTION:
            reasons[name] = f"not for {q.device.type}"
            continue
        call = _dense_call(q, k, v, backend)
        try:
            call()
        except RuntimeError as error:
            reasons[name] = str(error).splitlines()[0]
        else:
            calls[name] = call
    return calls, reasons


def _dense_call(q: Tensor, k: Tensor, v: Tensor, backend: Any) -> Callable[[], Tensor]:
    from torch.nn.attention import sdpa_kernel

    def call() -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return call


def _sparse_call(q: Tensor, k: Tensor, v: Tensor, plan: PyramidPlan) -> Callable[[], Any]:
    return lambda: pyramid_sparse_attention(q, k, v, plan=plan)


def _kernel_alone(q: Tensor, k: Tensor, v: Tensor, plan: PyramidPlan) -> Callable[[], Tensor]:
    from hiergen.kernels.pyramid_attention.backends.triton import kernel_inputs
    from hiergen.kernels.pyramid_attention.triton.operators import pyramid_attention_op

    ready = kernel_inputs(q, k, v, plan)
    numbers = (plan.query_block, plan.key_block, False, 0, plan.pooled_limit, 1 / math.sqrt(q.shape[-1]))
    return lambda: pyramid_attention_op(q, k, v, *ready, *numbers)[0]


def _preparation(q: Tensor, k: Tensor, v: Tensor, config: PSAConfig, repeats: int) -> dict[str, float]:
    request = ImportanceRequest(query_block=config.query_block, key_block=config.key_block)
    scores = estimate_importance(config.importance, q, k, request)
    plan = PyramidPlan(assign_pools(scores, config), q.shape[2], k.shape[2], config.query_block, config.key_block)
    calls: dict[str, Callable[[], Any]] = {
        "importance": lambda: estimate_importance(config.importance, q, k, request),
        "assignment": lambda: assign_pools(scores, config),
        "lists": lambda: with_lists(plan),
        "pyramid": (lambda: key_pyramid(k, v, config.key_block, tail="exact"))
        if runs_triton(q.device)
        else (lambda: [build_pyramid(x, config.key_block) for x in (k, v)]),
    }
    seconds = take_turns(calls, repeats=repeats, device=q.device)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    settings = result["settings"]
    table = Table(
        title=f"{settings['tokens']} tokens, {settings['heads']} heads of {settings['dim']}, {settings['dtype']}, {result['device']}"
    )
    for column in ("", "ms", "density", "TFLOP/s", "of matmul", "error"):
        table.add_column(column, justify="left" if not column else "right")
    for name, x in result["attention"].items():
        if "ms" in x:
            table.add_row(
                name,
                f"{x['ms']:.2f}",
                f"{x['density']:.3f}",
                f"{x['tflops']:.2f}",
                f"{x['share_of_peak']:.0%}",
                f"{x['error']:.1e}",
            )
        else:
            table.add_row(name, x["reason"])
    for name, ms in result["preparation_ms"].items():
        table.add_row(f"preparation: {name}", f"{ms:.2f}")
    show(table)
