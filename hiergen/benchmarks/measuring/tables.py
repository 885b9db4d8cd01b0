"""The tables of `docs/results/speed.md` that come from one run of `hiergen bench all`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiergen.files import write_text

#: What stands around the tables in the page.
BEGIN, END = "<!-- hiergen bench all: begin -->", "<!-- hiergen bench all: end -->"


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
    for name in dict.fromkeys(ratio["benchmark"] for ratio in result["ratios"]):
        rows = [
            f"| {ratio['case']} | {ratio['against']} | {ratio['value']:.2f} |"
            for ratio in result["ratios"]
            if ratio["benchmark"] == name
        ]
        parts.append(
            "\n".join([f"### `hiergen bench {name}`", "", "| case | against | ratio |", "|---|---|---|", *rows])
        )
    parts += [f"Not measured: `{name}` ({reason})." for name, reason in result["left_out"].items()]
    return "\n\n".join(parts)


def write_speed(result: Mapping[str, Any], page: Path) -> None:
    """Put the tables between the two marks of a page.

    Raises:
        ValueError: If the page does not hold each mark once, in order.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page} does not hold {BEGIN!r} and, behind it, {END!r}, each once")
    before, rest = text.split(BEGIN)
    write_text(page, f"{before}{BEGIN}\n\n{speed_tables(result)}\n\n{END}{rest.split(END)[1]}")
