"""`hiergen bench scaling`: how time and memory grow with tokens, samples, levels, pixels, points and clips, as fitted exponents.

Every size is measured in a process of its own, on one thread: processor time, the fastest of some runs, and the memory that the first run
takes on top of what was there. So another program on the machine disturbs little. On a GPU the time is the device's.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from hiergen.benchmarks.measuring.fits import fit_power
from hiergen.benchmarks.measuring.growth import GROWTHS, Call
from hiergen.benchmarks.measuring.parts import Part, Pieces, run_part
from hiergen.benchmarks.measuring.timing import describe_machine, show, timed
from hiergen.benchmarks.settings import ScalingSettings
from hiergen.config import nearest
from hiergen.environment import choose_device
from hiergen.files import write_json
from hiergen.telling import say

#: Seconds after which a size is given up.
_LIMIT = 900.0
#: Memory below this is lost in what the allocator holds anyway; sizes that take less are left out of the fit.
_LEAST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Point:
    """One size of one kind of work.

    Attributes:
        name: Name in `GROWTHS`.
        size: Size of the work.
        device: Device to run on.
        seed: Seed of weights and inputs.
        repeats: Measured runs.
    """

    name: str
    size: int
    device: str
    seed: int
    repeats: int


def run(settings: ScalingSettings) -> dict[str, Any]:
    """Measure, print a table, write the file after each kind of work, and return all numbers.

    Returns:
        JSON values: the settings, the machine, and under "growths" by name "what", "grows", "bound", "most", "sizes", "seconds", "bytes"
        (None where the system does not tell), the fits "time" and "memory" of `fit_power` (None where fewer than two sizes count),
        "is_too_steep", and under "failed" the sizes that were not measured and why.

    Raises:
        ValueError: If `only` names nothing that is measured.
    """
    unknown = [name for name in settings.only if name not in GROWTHS]
    if unknown:
        raise ValueError(f"only names {unknown[0]!r}, which is no kind of work{nearest(unknown[0], GROWTHS)}")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    device = choose_device(settings.device)
    found: dict[str, Any] = {
        "settings": {**dataclasses.asdict(settings), "output": str(settings.output)},
        "machine": {**describe_machine(device), **({"threads": 1} if device.type == "cpu" else {})},
        "growths": {},
    }
    for name in settings.only or GROWTHS:
        sizes = GROWTHS[name].quick if settings.quick else GROWTHS[name].sizes
        points = [
            Point(name, size, str(device), settings.seed, 1 if settings.quick else settings.repeats) for size in sizes
        ]
        entries = {point.size: run_part(context, Part(measure, 1.0), point, _LIMIT) for point in points}
        found["growths"][name] = _summary(name, entries)
        write_json(settings.output, found)
        say(f"{name}: {_told(found['growths'][name]['time'])}")
    _print(found)
    say(f"wrote {settings.output}")
    return found


def measure(point: Point) -> Pieces:
    """Yield "bytes" and "seconds" of one size; called in a process of its own."""
    device = choose_device(point.device)
    growth = GROWTHS[point.name]
    # What libraries load and keep at their first use does not grow.
    growth.make(growth.quick[0], point.seed, device)()
    call = growth.make(point.size, point.seed, device)
    yield "bytes", _peak_bytes(call, device)
    yield "seconds", min(_seconds(call, device) for _ in range(point.repeats))


def _seconds(call: Call, device: torch.device) -> float:
    if device.type == "cuda":
        return timed(call, device)[0]
    started = time.process_time()
    call()
    return time.process_time() - started


def _peak_bytes(call: Call, device: torch.device) -> int | None:
    """Return the most memory that the call holds at once, beyond what is held before; None where it is not told."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        call()
        return None
    # Linux: makes the peak that it keeps the memory of now.
    reset.write_text("5")
    before = _status("VmHWM")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


def _summary(name: str, entries: dict[int, dict[str, Any]]) -> dict[str, Any]:
    growth = GROWTHS[name]
    whole = {size: entry["found"] for size, entry in entries.items() if entry["state"] == "done"}
    seconds = [(size, values["seconds"]) for size, values in whole.items() if values["seconds"] > 0]
    sizeable = [(size, values["bytes"]) for size, values in whole.items() if (values["bytes"] or 0) >= _LEAST_BYTES]
    fits = [fit_power(*zip(*pairs, strict=True)) if len(pairs) > 1 else None for pairs in (seconds, sizeable)]
    return {
        "what": growth.what,
        "grows": growth.grows,
        "bound": growth.bound,
        "most": growth.most,
        "sizes": list(whole),
        "seconds": [values["seconds"] for values in whole.values()],
        "bytes": [values["bytes"] for values in whole.values()],
        "time": fits[0],
        "memory": fits[1],
        "is_too_steep": fits[0] is not None and fits[0]["last"] > growth.most,
        "failed": {
            str(size): entry.get("traceback", entry["state"])
            for size, entry in entries.items()
            if entry["state"] != "done"
        },
    }


def _told(fit: dict[str, Any] | None) -> str:
    """Return a fit as text: the exponent, its interval, and the exponent between the two largest sizes."""
    if fit is None:
        return "-"
    interval = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
    return f"{fit['exponent']:.2f}{interval}, last {fit['last']:.2f}"


def _print(found: dict[str, Any]) -> None:
    table = Table(
        title=f"exponents on {found['machine']['device']}",
        caption="time ~ size^exponent, 95 % interval; last: between the two largest sizes; * steeper than it need be",
    )
    for column in ("", "grows", "from", "to", "time", "memory"):
        table.add_column(column)
    for name, growth in found["growths"].items():
        ends = (f"{growth['sizes'][0]:,}", f"{growth['sizes'][-1]:,}") if growth["sizes"] else ("-", "-")
        mark = " *" if growth["is_too_steep"] else ""
        table.add_row(name, growth["grows"], *ends, _told(growth["time"]) + mark, _told(growth["memory"]))
    show(table)
    for name, growth in found["growths"].items():
        for size, reason in growth["failed"].items():
            say(f"{name} at {size}: {reason.strip().splitlines()[-1]}")
