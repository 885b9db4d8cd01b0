"""What the numbers of a benchmark come to: ratios of ours against plain programs, against dense attention, and against the machine's bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hiergen.benchmarks.measuring.work import bound_seconds


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One line of the table.

    Attributes:
        benchmark: Name of the benchmark.
        case: What was measured.
        against: What it is held against.
        value: How many times faster ours is; against "bound" the share of what the machine could do at best.
    """

    benchmark: str
    case: str
    against: str
    value: float


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How the rows of a benchmark are read.

    Attributes:
        case: Keys whose values name the case.
        ours: Key and value by which our rows are known; None for all rows.
        against: Keys of ratios, by what they are against.
        dtype: Number format where the settings have none.
    """

    case: tuple[str, ...]
    ours: tuple[str, str] | None
    against: Mapping[str, str]
    dtype: str = "float32"


_ROWS = {
    "restok": _Rows(("direction", "batch"), ("program", "hiergen"), {"plain": "times_faster_than_plain"}),
    "hieratok": _Rows(("pass", "batch"), ("form", "grouped"), {"dense mask": "times_faster_than_masked"}),
    "har": _Rows(
        ("batch",),
        ("sampler", "cached"),
        {"plain": "times_faster_than_plain", "plain, tables rebuilt": "times_faster_than_rebuilding"},
    ),
    "var": _Rows(("batch",), ("sampler", "cached"), {"plain": "times_faster_than_plain"}),
    "rar": _Rows(("batch",), ("sampler", "cached"), {"plain": "times_faster_than_plain"}),
    "maskgit": _Rows(("batch",), ("sampler", "hiergen"), {"plain": "times_faster_than_plain"}),
    "mar": _Rows(("batch",), ("sampler", "hiergen"), {"plain": "times_faster_than_plain"}),
    "mesh": _Rows(("shape", "nodes"), None, {"dense grid": "times_faster"}),
    "attention": _Rows(("layout", "pass", "backend"), None, {"sdpa": "times_faster_than_sdpa"}),
    "evaluate": _Rows((), ("part", "models"), {"its models alone": "share_of_evaluation"}),
}


def ratios_of(name: str, result: Mapping[str, Any], machine: Mapping[str, Any]) -> list[Ratio]:
    """Return the ratios in what a benchmark returned.

    Args:
        name: Name of the benchmark.
        result: What its `run` returned.
        machine: What `measure_machine` returned in the same run.

    Raises:
        ValueError: If it is not known how to read this benchmark.
    """
    if name in _ROWS:
        return _of_rows(name, _ROWS[name], result, machine)
    if name not in _OTHERS:
        raise ValueError(f"benchmark is {name!r}, expected one of {', '.join([*_ROWS, *_OTHERS])}")
    case, values = _OTHERS[name](result)
    return [Ratio(name, case, against, value) for against, value in values.items()]


def _of_rows(name: str, rule: _Rows, result: Mapping[str, Any], machine: Mapping[str, Any]) -> list[Ratio]:
    found, settings = [], result["settings"]
    for row in result["rows"]:
        if rule.ours is not None and row[rule.ours[0]] != rule.ours[1]:
            continue
        words = [str(settings["preset"])] if "preset" in settings else []
        words += [f"{key} {row[key]}" if isinstance(row[key], int) else str(row[key]) for key in rule.case]
        case = ", ".join(words)
        if row.get("backend") != "sdpa":
            found += [Ratio(name, case, against, row[key]) for against, key in rule.against.items()]
        if "flops" in row:
            bound = bound_seconds(row, machine, settings.get("dtype", rule.dtype))
            found.append(Ratio(name, case, "bound", bound / row["median_s"]))
    return found


def _of_psa(result: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    entries, settings = result["attention"], result["settings"]
    ms = entries["pyramid, all in"]["ms"]
    dense = min(entry["ms"] for name, entry in entries.items() if name.startswith("dense") and "ms" in entry)
    case = f"{settings['tokens']} tokens, density {settings['density']}"
    return case, {"dense attention": dense / ms, "bound": result["bound_ms"] / ms}


def _of_psa_quality(result: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    row = next(row for row in result["rows"] if row["importance"] == "pyramid")
    density = result["settings"]["densities"][0]
    # Both errors are zero where everything is read.
    error = max(row[f"pyramid@{density}"], 1e-12)
    return f"density {density}", {"block mask, by error": row[f"binary@{density}"] / error}


def _of_training(result: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    settings = result["settings"]
    return f"{settings['preset']}, batch {settings['batch']}", {
        "plain": result["times_faster_than_plain"],
        "bound": result["mfu"],
    }


_OTHERS = {"psa": _of_psa, "psa-quality": _of_psa_quality, "train-restok": _of_training}
