"""What the numbers of a benchmark come to: ratios of ours against plain programs, against dense attention, and against the machine's bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
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
        same: Returns how far ours and what it is held against agree, from a row.
        other: Value of the key of `ours` in the row that `same` takes; None for our own row.
    """

    case: tuple[str, ...]
    ours: tuple[str, str] | None
    against: Mapping[str, str]
    dtype: str = "float32"
    same: Callable[[Mapping[str, Any]], str] | None = None
    other: str | None = None


_ROWS = {
    "restok": _Rows(
        ("direction", "batch"),
        ("program", "hiergen"),
        {"plain": "times_faster_than_plain"},
        same=lambda row: _ids(row["agreement"]) if row["direction"] == "encode" else _off(row["agreement"]),
    ),
    "hieratok": _Rows(
        ("pass", "batch"),
        ("form", "grouped"),
        {"dense mask": "times_faster_than_masked"},
        same=lambda row: _off(row["difference"]),
    ),
    "har": _Rows(
        ("batch",),
        ("sampler", "cached"),
        {"plain": "times_faster_than_plain", "plain, tables rebuilt": "times_faster_than_rebuilding"},
        same=lambda row: _ids(row["equal_ids"]),
        other="plain",
    ),
    "mar": _Rows(
        ("batch",),
        ("sampler", "hiergen"),
        {"plain": "times_faster_than_plain"},
        same=lambda row: _off(row["relative_difference"]),
    ),
    "mesh": _Rows(
        ("shape", "nodes"),
        None,
        {"dense grid": "times_faster"},
        same=lambda row: {True: "same mesh", False: "another mesh", None: "not compared"}[row["is_equal"]],
    ),
    "attention": _Rows(
        ("layout", "pass", "backend"),
        None,
        {"sdpa": "times_faster_than_sdpa"},
        same=lambda row: _off(row["difference"]),
    ),
    "evaluate": _Rows((), ("part", "models"), {"its models alone": "share_of_evaluation"}),
} | {
    name: _Rows(
        ("batch",),
        ("sampler", ours),
        {"plain": "times_faster_than_plain"},
        same=lambda row: _ids(row["equal_ids"]),
        other="plain",
    )
    for name, ours in {"var": "cached", "rar": "cached", "maskgit": "hiergen"}.items()
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


def agreements_of(name: str, result: Mapping[str, Any]) -> dict[str, str]:
    """Return by case how far ours and what it is held against agree: the share of equal ids, or the largest difference.

    Args:
        name: Name of the benchmark.
        result: What its `run` returned.
    """
    rule = _ROWS.get(name)
    if rule is None or rule.same is None:
        return {}
    wanted = None if rule.ours is None else (rule.ours[0], rule.other or rule.ours[1])
    rows = [row for row in result["rows"] if wanted is None or row[wanted[0]] == wanted[1]]
    return {_case(rule, result["settings"], row): rule.same(row) for row in rows}


def _ids(share: float) -> str:
    return "all ids" if share == 1 else f"{share:.1%} of the ids"


def _off(difference: float) -> str:
    return f"up to {difference:.0e}" if difference else "equal"


def _case(rule: _Rows, settings: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    words = [str(settings["preset"])] if "preset" in settings else []
    words += [f"{key} {row[key]}" if isinstance(row[key], int) else str(row[key]) for key in rule.case]
    return ", ".join(words)


def by_case(ratios: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return values by benchmark, case, and what they are against, all in their order.

    Args:
        ratios: Fields of `Ratio`, as `hiergen bench all` writes them.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for ratio in ratios:
        found.setdefault(ratio["benchmark"], {}).setdefault(ratio["case"], {})[ratio["against"]] = ratio["value"]
    return found


def _of_rows(name: str, rule: _Rows, result: Mapping[str, Any], machine: Mapping[str, Any]) -> list[Ratio]:
    found, settings = [], result["settings"]
    for row in result["rows"]:
        if rule.ours is not None and row[rule.ours[0]] != rule.ours[1]:
            continue
        case = _case(rule, settings, row)
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
