"""`hiergen bench all`: every benchmark on the machine at hand, a line of ratios per case, and one JSON file."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from hiergen.benchmarks.measuring.ratios import by_case, ratios_of
from hiergen.benchmarks.measuring.timing import describe_machine
from hiergen.benchmarks.measuring.work import measure_machine
from hiergen.benchmarks.settings import SETTINGS, AllSettings, module_of
from hiergen.environment import choose_device
from hiergen.files import write_json
from hiergen.telling import say

#: What differs from a benchmark's own settings on a CPU, where they would take hours.
ON_CPU: dict[str, dict[str, Any]] = {
    "attention": {},
    "restok": {},
    "hieratok": {"depth": 4},
    "har": {},
    "var": {"batches": (1,)},
    "mar": {"batches": (2,), "num_steps": 8, "head_steps": 10},
    "rar": {"depth": 4},
    "maskgit": {"depth": 4},
    "mesh": {},
    "psa": {"tokens": 16_384, "heads": 4, "dim": 64, "density": 0.15, "dtype": "float32", "repeats": 5},
    "psa-quality": {},
    "train-restok": {},
    "evaluate": {},
}
#: What differs with `quick`, on any device: seconds per benchmark.
QUICK: dict[str, dict[str, Any]] = {
    "attention": {"tokens": 256, "heads": 4, "repeats": 1},
    "restok": {"preset": "restok-tiny", "batches": (1,), "repeats": 1},
    "hieratok": {"preset": "hieratok-tiny", "batches": (1,), "repeats": 1},
    "har": {"preset": "har-tiny", "batches": (1,), "repeats": 1},
    "var": {"preset": "var-tiny", "batches": (1,), "repeats": 1},
    "mar": {"preset": "mar-tiny", "batches": (1,), "num_steps": 4, "head_steps": 5, "repeats": 1},
    "rar": {"preset": "rar-tiny", "batches": (1,), "repeats": 1},
    "maskgit": {"preset": "maskgit-tiny", "batches": (1,), "repeats": 1},
    "mesh": {"shapes": ("sphere",), "depths": (5,), "coarse_depth": 4},
    "psa": {"tokens": 2048, "heads": 2, "dim": 64, "density": 0.15, "dtype": "float32", "repeats": 1},
    "psa-quality": {"tokens": 512, "heads": 1, "densities": (0.2,)},
    "train-restok": {"preset": "restok-tiny", "batch": 4, "repeats": 1},
    "evaluate": {"num_images": 32, "repeats": 1, "resamples": 0},
}


def run(settings: AllSettings) -> dict[str, Any]:
    """Run the benchmarks one after another, print the table of ratios, and return all numbers.

    Returns:
        JSON values: the settings, the machine with what it can do at best, "ratios" (`Ratio` of `measuring/ratios.py`), "results" by
        benchmark, and under "left_out" why a benchmark did not run: it needs a package that is not installed.

    Raises:
        ValueError: If `only` names no benchmark.
    """
    device = choose_device(settings.device)
    unknown = [name for name in settings.only if name not in QUICK]
    if unknown:
        raise ValueError(f"only names {', '.join(map(repr, unknown))}, expected some of {', '.join(QUICK)}")
    limits: dict[str, Any] = {"megabytes": 64, "seconds": 0.1} if settings.quick else {}
    machine = {**describe_machine(device), **measure_machine(device, **limits)}
    found: dict[str, Any] = {
        "settings": {**dataclasses.asdict(settings), "output": str(settings.output)}, "machine": machine,
        "ratios": [], "results": {}, "left_out": {},
    }  # fmt: skip
    for name in settings.only or QUICK:
        try:
            result = _run_one(name, settings, is_cpu=device.type == "cpu")
        except ImportError as error:
            found["left_out"][name] = str(error)
            continue
        found["results"][name] = result
        found["ratios"] += [dataclasses.asdict(ratio) for ratio in ratios_of(name, result, machine)]
        # A long run that is stopped has written what it measured.
        write_json(settings.output, found)
    _print(found)
    write_json(settings.output, found)
    say(f"wrote {settings.output}")
    return found


def _run_one(name: str, settings: AllSettings, *, is_cpu: bool) -> dict[str, Any]:
    changes = QUICK[name] if settings.quick else ON_CPU[name] if is_cpu else {}
    shared = {"device": settings.device, "seed": settings.seed}
    kind = SETTINGS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    chosen = kind(**{key: value for key, value in shared.items() if key in fields}, **changes)
    result: dict[str, Any] = importlib.import_module(module_of(name)).run(chosen)
    return result


def _print(found: dict[str, Any]) -> None:
    """Print a line per case: whole at any width, since what is no terminal counts as narrow."""
    machine = found["machine"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in machine["flops_per_s"].items())
    print(
        f"{machine['device']}, {machine['threads']} threads: {rates}, copying {machine['bytes_per_s'] / 1e9:,.1f} GB/s\n"
        "Times faster than what it is against; against bound: share of what the machine's rates allow."
    )
    for name, cases in by_case(found["ratios"]).items():
        print(f"\n{name}")
        for case, values in cases.items():
            print(f"  {case}: {'; '.join(f'{against} {value:.2f}' for against, value in values.items())}")
    for name, reason in found["left_out"].items():
        say(f"left out {name}: {reason}")
