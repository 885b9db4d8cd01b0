"""Confidence intervals by resampling, for one report and for the difference of two.

An interval of resampling is the value plus and minus 1.96 standard deviations of bootstrap draws. The draws' own mean is not used: a resample with
repeats has fewer different images than the set, and a Fréchet distance of fewer images is larger.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hiergen.evaluation.references import Reference
from hiergen.metrics.frechet import FrechetResampler, Moments, frechet_distance

#: Half of a 95 % interval in standard deviations.
NORMAL_95 = 1.96

#: From the indices of a resample to a metric.
Statistic = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class StoredReport:
    """A report that was read back.

    Attributes:
        path: Its JSON file.
        report: Its entries.
        values: One row an image: what its metrics were computed from.
        reference: Moments of what it was compared with; None where images and references were resampled together.
    """

    path: Path
    report: dict[str, Any]
    values: dict[str, Tensor]
    reference: Moments | None


def load_report(path: str | Path) -> StoredReport:
    """Return a report by its JSON file or its folder.

    Raises:
        ValueError: If there is none, or the values beside it are missing.
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ValueError(f"{str(file)!r} does not exist, expected the report.json of `hiergen evaluate`")
    try:
        report = json.loads(file.read_text())
        _ = report["kind"], report["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is no report of `hiergen evaluate`: {error!r}") from error
    stored = file.parent / "values.safetensors"
    if not stored.is_file():
        raise ValueError(f"{str(stored)!r} does not exist: intervals need the values beside the report")
    values, reference = load_file(stored), None
    if "pool" in values and "reference_pool" not in values:
        with np.load(file.parent / "reference.npz", allow_pickle=False) as arrays:
            reference = Moments(arrays["mu"], arrays["sigma"], 0)
    return StoredReport(file, report, values, reference)


def statistics(values: dict[str, Tensor], reference: Moments | None, distance: str) -> dict[str, Statistic]:
    """Return the metrics that can be resampled, each as a function of the indices of a resample.

    Args:
        values: One row an image, NaN where it has no such measure; "pool" are features, "reference_pool" those of what each image was rebuilt from.
        reference: A fixed reference; not used where there is "reference_pool": then images and what they were rebuilt from are
            resampled together.
        distance: Name of the Fréchet distance.
    """
    found: dict[str, Statistic] = {}
    for name, rows in values.items():
        if rows.ndim == 1:
            array = rows.double().numpy()
            found[name] = lambda chosen, array=array: float(np.nanmean(array[chosen]))  # type: ignore[misc]
    if "pool" in values:
        if "reference_pool" not in values:
            assert reference is not None
            found[distance] = FrechetResampler(values["pool"], reference)
        else:
            made, real = (values[name].double().numpy() for name in ("pool", "reference_pool"))
            found[distance] = lambda chosen: frechet_distance(made[chosen], real[chosen])
    return found


def intervals(
    values: dict[str, Tensor], reference: Reference | None, distance: str, *, resamples: int, seed: int
) -> dict[str, float]:
    """Return half of the 95 % interval of each metric that can be resampled."""
    count = len(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    draws = [rng.integers(count, size=count) for _ in range(resamples)]
    chosen = statistics(values, None if reference is None else reference.pool, distance)
    return {name: _half_width([value(draw) for draw in draws]) for name, value in chosen.items()}


def compare(first: str | Path, second: str | Path, *, resamples: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return the differences of two reports, second minus first, with 95 % intervals.

    Reconstructions of the same images are resampled in pairs, the same images in both; everything else independently. Metrics that
    are not resampled (KID, IS, precision, recall) have the root of the sum of squares of both reports' own intervals.

    Args:
        first: A report.json or its folder.
        second: Another.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        ValueError: If a report is missing, or the two were made under different protocols: the differing entries are named.
    """
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}, expected at least 2")
    reports = [load_report(path) for path in (first, second)]
    check_comparable(*reports)
    names = _distance_name(reports[0].report)
    counts = [len(next(iter(stored.values.values()))) for stored in reports]
    paired = _is_paired(*reports)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        one = rng.integers(counts[0], size=counts[0])
        draws.append((one, one if paired else rng.integers(counts[1], size=counts[1])))
    measures = [statistics(stored.values, stored.reference, names) for stored in reports]
    spreads = {}
    for name in (name for name in measures[0] if name in measures[1]):
        spreads[name] = _half_width([measures[1][name](two) - measures[0][name](one) for one, two in draws])
    own = [stored.report.get("intervals_95", {}) for stored in reports]
    for name in (name for name in own[0] if name in own[1] and name not in spreads):
        spreads[name] = math.hypot(own[0][name], own[1][name])
    rows = {}
    for name, spread in spreads.items():
        a, b = (float(stored.report["metrics"][name]) for stored in reports)
        rows[name] = {
            "first": a,
            "second": b,
            "difference": b - a,
            "half_width": spread,
            "is_clear": bool(abs(b - a) > spread),
            "interval": "resampled" if name in measures[0] else "from both reports' own",
        }
    return {
        "kind": "comparison",
        "first": str(reports[0].path),
        "second": str(reports[1].path),
        "resampling": f"{resamples} bootstrap draws, seed {seed}, "
        + ("pairs of the same images" if paired else "independent"),
        "metrics": rows,
    }


def check_comparable(first: StoredReport, second: StoredReport) -> None:
    """Check that two reports answer the same question.

    Raises:
        ValueError: Naming what differs.
    """
    differing = []
    for name in (
        "kind",
        "extractor.name",
        "extractor.fingerprint",
        "protocol.rounding",
        "protocol.resize",
        "protocol.lpips",
    ):
        a, b = (_entry(stored.report, name) for stored in (first, second))
        if a != b:
            differing.append(f"{name}: {a!r} and {b!r}")
    if differing:
        raise ValueError(f"the reports cannot be compared, they differ in {'; '.join(differing)}")


def _is_paired(first: StoredReport, second: StoredReport) -> bool:
    if first.report["kind"] != "rfid":
        return False
    seen = [(stored.report["reference"].get("data"), stored.report["counts"]["images"]) for stored in (first, second)]
    return seen[0] == seen[1] and seen[0][0] is not None


def _distance_name(report: dict[str, Any]) -> str:
    return next((name for name in report["metrics"] if name[1:].startswith(("FID", "FD"))), "")


def _entry(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _half_width(draws: list[float]) -> float:
    return float(NORMAL_95 * torch.tensor(draws, dtype=torch.float64).std())
