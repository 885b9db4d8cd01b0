"""The tables of `docs/results/speed.md` and `docs/results/scaling.md` that come from one run of `hiergen bench all` and `hiergen bench scaling`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hiergen.benchmarks.measuring.ratios import agreements_of, by_case
from hiergen.files import write_text

#: What stands around the tables in a page, by the benchmark.
MARKS = "<!-- hiergen bench {}: begin -->", "<!-- hiergen bench {}: end -->"


def speed_tables(result: Mapping[str, Any]) -> str:
    """Return what `hiergen bench all` measured as Markdown: the machine, and a table per benchmark.

    Args:
        result: What its `run` returned, or the JSON file that it wrote.
    """
    machine = result["machine"]
    rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in machine["flops_per_s"].items())
    size = "small sizes, single runs (`--quick`)" if result["settings"]["quick"] else "full sizes"
    parts = [
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}; {size}. Matrix products reach {rates}; "
        f'copying moves {machine["bytes_per_s"] / 1e9:,.1f} GB/s. Against "bound" a number is the share of what these allow, '
        "elsewhere how many times faster ours is."
    ]
    for name, cases in by_case(result["ratios"]).items():
        same = agreements_of(name, result["results"][name])
        against = list(dict.fromkeys(key for values in cases.values() for key in values))
        head = ["case", *against, *(["agree"] if same else [])]
        lines = [head, ["---"] * len(head)]
        for case, values in cases.items():
            cells = [f"{values[key]:.2f}" if key in values else "" for key in against]
            lines.append([case, *cells, *([same.get(case, "")] if same else [])])
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### `hiergen bench {name}`\n\n{rows}")
    parts += [f"Not measured: `{name}` ({reason})." for name, reason in result["left_out"].items()]
    return "\n\n".join(parts)


def scaling_tables(result: Mapping[str, Any]) -> str:
    """Return what `hiergen bench scaling` measured as Markdown: the machine, exponents by kind of work, and what each size took.

    Args:
        result: What its `run` returned, or the JSON file that it wrote.
    """
    machine, growths = result["machine"], result["growths"]
    size = "small sizes, single runs (`--quick`)" if result["settings"]["quick"] else "full sizes"
    exponents = ["| work | grows | time | last | expected | memory | last |", "|---|---|---|---|---|---|---|"]
    sizes = ["| work | grows | seconds | MiB |", "|---|---|---|---|"]
    for growth in growths.values():
        cells = [cell for kind in ("time", "memory") for cell in _fit_cells(growth[kind])]
        name = f"**{growth['what']}**" if growth["is_too_steep"] else growth["what"]
        exponents.append(f"| {name} | {growth['grows']} | {' | '.join([*cells[:2], growth['bound'], *cells[2:]])} |")
        mebibytes = [None if value is None else value / 2**20 for value in growth["bytes"]]
        rows = (_listed(growth["sizes"]), _listed(growth["seconds"]), _listed(mebibytes))
        sizes.append(f"| {growth['what']}, {growth['grows']} | {' | '.join(rows)} |")
    steep = [growth["what"] for growth in growths.values() if growth["is_too_steep"]]
    failed = [f"{x['what']} at {size}" for x in growths.values() for size in x["failed"]]
    verdict = f"steeper than expected: {'; '.join(steep)}." if steep else "nothing is steeper than expected."
    parts = [
        f"{machine['device']}, {machine['threads']} threads, PyTorch {machine['torch']}; {size}. By the last two sizes {verdict}",
        "\n".join(exponents),
        "\n".join(sizes),
    ]
    return "\n\n".join([*parts, *([f"Not measured: {'; '.join(failed)}."] if failed else [])])


def _fit_cells(fit: Mapping[str, Any] | None) -> tuple[str, str]:
    if fit is None:
        return "too little", "-"
    interval = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
    return f"{fit['exponent']:.2f}{interval}", f"{fit['last']:.2f}"


def _listed(values: Iterable[float | int | None]) -> str:
    return ", ".join(
        "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}" for value in values
    )


def write_speed(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables of `hiergen bench all` between the two marks of a page, see `write_between`."""
    write_between("all", speed_tables(result), page)


def write_scaling(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables of `hiergen bench scaling` between the two marks of a page, see `write_between`."""
    write_between("scaling", scaling_tables(result), page)


def write_between(benchmark: str, text: str, page: Path) -> None:
    """Put a text between the two marks of a benchmark in a page.

    Raises:
        ValueError: If the page does not hold each mark once, in order.
    """
    begin, end = (mark.format(benchmark) for mark in MARKS)
    old = page.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise ValueError(f"{page} does not hold {begin!r} and, behind it, {end!r}, each once")
    before, rest = old.split(begin)
    write_text(page, f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
