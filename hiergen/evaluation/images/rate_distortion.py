"""Quality against the number of tokens: the rows that every prefix of a tokenizer's levels gives, their table and their picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hiergen.figures import Curve, save_curves
from hiergen.metrics.intervals import NORMAL_95
from hiergen.pipelines.prefixes import Prefix

Row = Mapping[str, Any]
#: Metrics that are drawn, beside the Fréchet distance.
PLOTTED = ("psnr", "ssim", "lpips", "flicker_error", "IoU", "chamfer")


def rate_row(prefix: Prefix, metrics: dict[str, float], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a prefix costs and reaches, as JSON values.

    Args:
        prefix: Part of the tokens that was decoded.
        metrics: Metrics by name.
        values: One value per item for each metric that is a mean over items, NaN where an item has none; an empty mapping leaves
            intervals out.
    """
    half = {name: _half_width(rows) for name, rows in values.items() if name in metrics}
    return {**dataclasses.asdict(prefix), "metrics": metrics, "intervals_95": half}


def _half_width(values: Tensor) -> float:
    known = values.double()[~values.isnan()]
    return float(NORMAL_95 * known.std() / len(known) ** 0.5) if len(known) > 1 else 0.0


def describe_rate(prefixes: Sequence[Prefix]) -> str:
    """Return what all tokens of one item hold, and whether fewer of them can be decoded."""
    if len(prefixes) == 1:
        return f"{prefixes[-1]}; the only rate of this tokenizer"
    return f"{prefixes[-1]}, in {prefixes[-1].count} {prefixes[-1].unit}"


def with_intervals(report: Mapping[str, Any]) -> list[Row]:
    """Return the rates of a report; the last, everything, has the report's own intervals."""
    rows, own = report.get("rate_distortion", []), report.get("intervals_95", {})
    return [*rows[:-1], *({**row, "intervals_95": {**row.get("intervals_95", {}), **own}} for row in rows[-1:])]


def is_distance(name: str) -> bool:
    """Return whether a metric is a Fréchet distance of reconstructions."""
    return name.startswith(("rFID", "rFD"))


def rate_of(rows: Sequence[Row]) -> str:
    """Return which entry tells the rates of rows apart: "tokens", or "numbers" where all have as many tokens."""
    return "tokens" if len({row["tokens"] for row in rows}) == len(rows) else "numbers"


def draw_rates(path: str | Path, curves: Mapping[str, Sequence[Row]], *, rate: str) -> None:
    """Write the picture of some rates, one panel per metric and one curve per tokenizer; distances on a logarithmic axis.

    Args:
        path: File of the picture.
        curves: Rows by the name of the tokenizer.
        rate: Entry of the rows on the x axis: "tokens", "bits" or "numbers".
    """
    panels: dict[str, dict[str, Curve]] = {}
    for label, rows in curves.items():
        for name in rows[-1]["metrics"]:
            found = [row for row in rows if row["metrics"].get(name) is not None]
            if found and (name in PLOTTED or is_distance(name)):
                panels.setdefault(name, {})[label] = (
                    [float(row[rate]) for row in found],
                    [row["metrics"][name] for row in found],
                    [row.get("intervals_95", {}).get(name) or 0.0 for row in found],
                )
    logarithmic = [name for name in panels if is_distance(name)]
    save_curves(path, panels, x_label=rate, logarithmic=logarithmic, shows_points=True)
