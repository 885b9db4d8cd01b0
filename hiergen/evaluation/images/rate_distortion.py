"""Quality against the size of the code: the rows that every prefix of a tokenizer's levels gives, their table and their picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hiergen.evaluation.images.pair_metrics import LPIPS_NAME, PAIR_METRICS
from hiergen.figures import Curve, save_curves
from hiergen.metrics.intervals import NORMAL_95
from hiergen.pipelines.prefixes import Prefix
from hiergen.telling import counted

Row = Mapping[str, Any]
#: Metrics that are drawn, beside the Fréchet distance and those of pairs of images that say so.
PLOTTED = (LPIPS_NAME, "flicker_error", "IoU", "chamfer")
#: Number of bits that a real number of continuous tokens is counted as: it has bfloat16's, which lose little.
NUMBER_BITS = 16


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


def code_bits(row: Row) -> float:
    """Return the size of a code in bits, the same measure for ids and for real numbers, which count as 16 bits each."""
    return float(row["bits"] if row["bits"] is not None else NUMBER_BITS * row["numbers"])


def draw_rates(path: str | Path, curves: Mapping[str, Sequence[Row]], *, rate: str = "bits") -> None:
    """Write the picture of some rates, one panel per metric and one curve per tokenizer; distances on a logarithmic axis.

    Args:
        path: File of the picture.
        curves: Rows by the name of the tokenizer.
        rate: Size of a code on the x axis: "bits", with the number of tokens below, or "tokens" or "numbers" alone.
    """
    size = code_bits if rate == "bits" else lambda row: float(row[rate])
    tokens: dict[float, set[int]] = {}
    for row in (row for rows in curves.values() for row in rows):
        tokens.setdefault(size(row), set()).add(row["tokens"])
    panels: dict[str, dict[str, Curve]] = {}
    for label, rows in curves.items():
        for name in rows[-1]["metrics"]:
            found = [row for row in rows if row["metrics"].get(name) is not None]
            if found and (_is_drawn(name) or is_distance(name)):
                panels.setdefault(name, {})[label] = (
                    [size(row) for row in found],
                    [row["metrics"][name] for row in found],
                    [row.get("intervals_95", {}).get(name) or 0.0 for row in found],
                )
    logarithmic = [name for name in panels if is_distance(name)]
    is_real = any(row["bits"] is None for rows in curves.values() for row in rows)
    label = "bits of the code" + (f" (a real number counts as {NUMBER_BITS})" if is_real else "")
    save_curves(
        path,
        panels,
        x_label=label if rate == "bits" else rate,
        logarithmic=logarithmic,
        shows_points=True,
        point_labels={place: " or ".join(counted(n, "token") for n in sorted(found)) for place, found in tokens.items()}
        if rate == "bits"
        else {},
    )


def _is_drawn(name: str) -> bool:
    return name in PLOTTED or (name in PAIR_METRICS and PAIR_METRICS[name].is_drawn)
