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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.evaluation.features.distances import BLOCKS
from hiergen.evaluation.features.references import Reference
from hiergen.metrics.fidelity import kernel_distance_by_block
from hiergen.metrics.frechet import FrechetResampler, Moments, PairedFrechetResampler
from hiergen.metrics.intervals import NORMAL_95, mean_half_width

#: Maps the indices of a resample to a metric.
Statistic = Callable[[np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class StoredReport:
    """A report that was read back.

    Attributes:
        path: JSON file of the report.
        report: Entries of the report.
        values: What its metrics were computed from, one row per item.
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
        why = f"it has no {error}" if isinstance(error, KeyError) else "it holds no JSON object"
        raise ValueError(f"{str(file)!r} is no report of `hiergen evaluate`: {why}") from error
    stored = file.parent / "values.safetensors"
    if not stored.is_file():
        raise ValueError(f"{str(stored)!r} does not exist: intervals need the values beside the report")
    try:
        values, reference = load_file(stored), None
    except SafetensorError as error:
        raise ValueError(f"{str(stored)!r} is damaged: {error}; run the evaluation again") from error
    if "pool" in values and "reference_pool" not in values:
        beside = file.parent / "reference.npz"
        with open_npz(beside) as arrays:
            reference = Moments(read_array(arrays, "mu", beside), read_array(arrays, "sigma", beside), 0)
    return StoredReport(file, report, values, reference)


def statistics(
    values: dict[str, Tensor],
    reference: Moments | None,
    distance: str,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Statistic]:
    """Return the metrics that can be resampled, each as a function of the indices of a resample.

    Args:
        values: What metrics are computed from, one row per item, NaN where it has no such measure; "pool" are features, "reference_pool"
            those of what each item was rebuilt from.
        reference: Moments of a fixed reference; not used where there is "reference_pool": then images and what they were rebuilt from are
            resampled together.
        distance: Name of the Fréchet distance.
        device: Device on which it is computed.
    """
    found: dict[str, Statistic] = {}
    for name, rows in values.items():
        if rows.ndim == 1:
            array = rows.double().numpy()
            found[name] = lambda chosen, array=array: _known_mean(array[chosen])  # type: ignore[misc]
    if "pool" in values:
        if "reference_pool" not in values:
            assert reference is not None
            found[distance] = FrechetResampler(values["pool"], reference, device=device)
        else:
            found[distance] = PairedFrechetResampler(values["pool"], values["reference_pool"], device=device)
    return found


def intervals(
    values: dict[str, Tensor],
    reference: Reference | None,
    distance: str,
    *,
    resamples: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return half of the 95 % interval of each metric that can be resampled."""
    count = len(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    draws = [rng.integers(count, size=count) for _ in range(resamples)]
    chosen = statistics(values, None if reference is None else reference.pool, distance, device=device)
    return {name: _half_width([value(draw) for draw in draws]) for name, value in chosen.items()}


def compare(first: str | Path, second: str | Path, *, resamples: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return the differences of two reports, second minus first, with 95 % intervals.

    Where both are about the same items (reconstructions of the same images), those are resampled in pairs, the same items in both;
    everything else independently. Metrics that are not resampled (IS, precision, recall) have the root of the sum of squares of both
    reports' own intervals, and so has KID; rKID of reconstructions of the same images is compared block by block.
    A metric that is not finite in one of the reports, such as the PSNR of equal images, has no difference: None.
    What makes a difference say less than it seems to is in "warnings".

    Args:
        first: A report.json or its folder.
        second: Another report.json or its folder.
        resamples: Number of bootstrap draws, at least 2.
        seed: Seed of the draws and the blocks.

    Raises:
        ValueError: If a report is missing, or the two were made under different protocols: the differing entries are named.
    """
    if resamples < 2:
        raise ValueError(f"resamples is {resamples}, expected at least 2")
    reports = load_report(first), load_report(second)
    check_comparable(*reports)
    paired = _is_paired(*reports)
    spreads = {
        **_from_both(*reports),
        **(_by_blocks(*reports, seed=seed) if paired else {}),
        **_resampled(*reports, is_paired=paired, resamples=resamples, seed=seed),
    }
    a, b = (stored.report["metrics"] for stored in reports)
    rows = {name: _row(a[name], b[name], *spread) for name, spread in spreads.items() if name in a and name in b}
    return {
        "kind": "comparison",
        "first": str(reports[0].path),
        "second": str(reports[1].path),
        "extractor": _entry(reports[0].report, "extractor.name"),
        "resampling": f"{resamples} bootstrap draws, seed {seed}, "
        + ("pairs of the same items" if paired else "independent"),
        "metrics": rows,
        "warnings": _doubts(*reports),
    }


def _row(first: float | None, second: float | None, half_width: float, how: str) -> dict[str, Any]:
    if first is None or second is None or not math.isfinite(half_width):
        known: dict[str, Any] = {"difference": None, "half_width": None, "is_clear": False}
    else:
        difference = second - first
        known = {"difference": difference, "half_width": half_width, "is_clear": abs(difference) > half_width}
    return {"first": first, "second": second, **known, "interval": how}


#: Half of the 95 % interval of the difference of each metric, and how it was found.
_Spreads = dict[str, tuple[float, str]]


def _from_both(first: StoredReport, second: StoredReport) -> _Spreads:
    """Return the intervals of a difference of independent values from both reports' own."""
    own = [stored.report.get("intervals_95", {}) for stored in (first, second)]
    shared = [name for name in own[0] if own[0][name] is not None and own[1].get(name) is not None]
    return {name: (math.hypot(own[0][name], own[1][name]), "from both reports' own") for name in shared}


def _by_blocks(first: StoredReport, second: StoredReport, *, seed: int) -> _Spreads:
    """Return the interval of the difference of two kernel distances to the same images, block by block."""
    name = next((name for name in first.report["metrics"] if name.startswith("rK")), None)
    if name is None:
        return {}
    by_report = []
    for values in (first.values, second.values):
        if not {"pool", "reference_pool"} <= set(values) or len(values["pool"]) < 2 * BLOCKS:
            return {}
        sets = values["pool"], values["reference_pool"]
        by_report.append(kernel_distance_by_block(*sets, num_blocks=BLOCKS, is_paired=True, seed=seed))
    half = mean_half_width(float((by_report[1] - by_report[0]).std()), BLOCKS)
    return {name: (half, f"{BLOCKS} blocks, the same images in both")}


def _resampled(first: StoredReport, second: StoredReport, *, is_paired: bool, resamples: int, seed: int) -> _Spreads:
    """Return the intervals of what is resampled."""
    counts = [len(next(iter(stored.values.values()))) for stored in (first, second)]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        one = rng.integers(counts[0], size=counts[0])
        draws.append((one, one if is_paired else rng.integers(counts[1], size=counts[1])))
    name = distance_name(first.report)
    measures = [statistics(stored.values, stored.reference, name) for stored in (first, second)]
    return {
        name: (_half_width([measures[1][name](two) - measures[0][name](one) for one, two in draws]), "resampled")
        for name in measures[0]
        if name in measures[1]
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
        "protocol.views",
    ):
        a, b = (_entry(stored.report, name) for stored in (first, second))
        if a != b:
            differing.append(f"{name}: {a!r} and {b!r}")
    if not _is_same_reference(first.reference, second.reference):
        names = [_entry(stored.report, "reference.source") for stored in (first, second)]
        differing.append(f"reference: {names[0]!r} and {names[1]!r}, other statistics")
    if differing:
        raise ValueError(f"the reports cannot be compared, they differ in {'; '.join(differing)}")


def _is_same_reference(first: Moments | None, second: Moments | None) -> bool:
    """Return whether two fixed references are one; they are by their moments, since a file of statistics has no name for its images."""
    if first is None or second is None:
        return first is second
    # A reference that was exported and read back went through float64 once more.
    return np.allclose(first.mean, second.mean) and np.allclose(first.covariance, second.covariance)


def _doubts(first: StoredReport, second: StoredReport) -> list[str]:
    name, counts = distance_name(first.report), [len(next(iter(stored.values.values()))) for stored in (first, second)]
    if not name or counts[0] == counts[1]:
        return []
    return [
        f"{name} is of {counts[0]:,} and of {counts[1]:,} items, and the distance of fewer is larger by its bias: "
        "compare equal numbers"
    ]


def distance_name(report: dict[str, Any]) -> str:
    """Return what a report calls its Fréchet distance; "" where it has none."""
    return next((name for name in report["metrics"] if name[1:].startswith(("FID", "FD"))), "")


def _is_paired(first: StoredReport, second: StoredReport) -> bool:
    items = [stored.report.get("items") for stored in (first, second)]
    return items[0] is not None and items[0] == items[1]


def _entry(report: dict[str, Any], path: str) -> Any:
    value: Any = report
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _known_mean(values: np.ndarray) -> float:
    """Return the mean of the values that are there; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _half_width(draws: list[float]) -> float:
    return float(NORMAL_95 * torch.tensor(draws, dtype=torch.float64).std())
