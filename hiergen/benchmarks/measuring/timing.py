"""Fair timing: calls take turns, so that a slow spell of the machine meets all of them."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hiergen.benchmarks.measuring.settings import RepeatedSettings
from hiergen.environment import processor_name
from hiergen.kernels.dispatch import plain_on_cpu
from hiergen.registry import create, get_preset


def check_kind(preset: str, kind: str) -> None:
    """Raise a ValueError where a preset is of another model than the benchmark times."""
    found = get_preset(preset).model
    if found != kind:
        raise ValueError(f"preset {preset!r} is a {found}, expected a {kind}")


def random_model(preset: str, kind: str, *, seed: int, **overrides: Any) -> Any:
    """Return a preset's model with random weights, in evaluation mode; the global generators stay as they were.

    Raises:
        ValueError: If the preset's model is no `kind`.
    """
    check_kind(preset, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(preset, **overrides).eval()


def take_turns(calls: Mapping[str, Callable[[], Any]], *, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Return `repeats` measured times of each call in seconds, after one round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_index in range(repeats + 1):
        for name, call in calls.items():
            taken, _ = timed(call, device)
            if round_index:
                seconds[name].append(taken)
    return seconds


def plainly(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a call that runs with PyTorch's own operations: what plain programs are timed with, also where they use our layers."""
    return plain_on_cpu()(call)


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds that a call takes until the device is done with it, and its result."""
    started = clock(device)
    result = call()
    return clock(device) - started, result


def clock(device: torch.device) -> float:
    """Return the time in seconds at which the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe_times(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Return the median, fastest and slowest of measured times in seconds, and the images per second of the median."""
    median = statistics.median(seconds)
    return {"median_s": median, "min_s": min(seconds), "max_s": max(seconds), "images_per_s": batch / median}


def publish(
    settings: RepeatedSettings,
    device: torch.device,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    caption: str,
    names: Sequence[str],
    extra: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    """Print rows that hold `describe_times`, and return settings, machine and rows as JSON values.

    Args:
        settings: Settings of the benchmark.
        device: Device that was measured.
        rows: Rows of the table; each has "batch", the names, the times, and what `extra` formats.
        title: Beginning of the text above the table; device, threads and repetitions follow.
        caption: Text below the table.
        names: Keys of the text columns, e.g. ("direction", "program").
        extra: Key and format of each further column by its heading, e.g. {"x plain": ("times_faster_than_plain", ".2f")}; a dash
            stands where the value is None.
    """
    machine = describe_machine(device)
    title = f"{title}, {machine['device']}, {machine['threads']} threads, median of {settings.repeats}"
    table = Table(title=title, caption=caption)
    for column in ("batch", *names, "ms", "fastest - slowest", "images/s", *extra):
        table.add_column(column, justify="left" if column in names else "right")
    for row in rows:
        table.add_row(
            str(row["batch"]),
            *(row[name] for name in names),
            f"{1e3 * row['median_s']:.1f}",
            f"{1e3 * row['min_s']:.1f} - {1e3 * row['max_s']:.1f}",
            f"{row['images_per_s']:.3g}",
            *("-" if row[key] is None else format(row[key], form) for key, form in extra.values()),
        )
    show(table)
    return {"settings": dataclasses.asdict(settings), "machine": machine, "rows": rows}


def show(table: Table) -> None:
    """Print a table at its own width: what is no terminal, a log file for one, counts as 80 columns, and cells would be cut."""
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what a time must be read with: device, threads, version of PyTorch."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"{processor_name()} CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
