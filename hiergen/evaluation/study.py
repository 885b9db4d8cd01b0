"""Comparisons that can be believed: the same budget and the same seeds for every variant, means with their uncertainty.

A study is a table of runs, variants by seeds. Every finished run leaves a file and is passed over the next time, so that a stopped study
continues and one that gains a variant or a seed runs only what is new.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.console import Console

from hiergen.checked import Checked
from hiergen.config import fingerprint
from hiergen.files import check_writable, write_json
from hiergen.metrics.intervals import mean_half_width

#: A run of one variant: maps a seed and a folder of its own to what was measured.
Run = Callable[[int, Path], Mapping[str, float]]

_RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with half of its 95 % confidence interval (Student's t; NaN for a single seed)."""

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from one value per seed.

        Raises:
            ValueError: If there is no value.
        """
        if not values:
            raise ValueError("values is empty, expected one value per seed")
        count, mean = len(values), math.fsum(values) / len(values)
        if count == 1:
            return cls(mean, math.nan, 1)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
        return cls(mean, mean_half_width(deviation, count), count)

    def text(self, digits: int = 3, *, signed: bool = False) -> str:
        """Return e.g. "19.52 ± 0.31"; without the interval for a single seed."""
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {self.half_width:.{digits}f}"


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """What a study measured.

    Attributes:
        values: Metrics of each seed of each variant: `values[variant][seed][metric]`.
        seconds: Seconds of each seed of each variant. They mean little where the machine was shared.
        settings: What all runs had in common, and how each variant differs.
    """

    values: dict[str, dict[int, dict[str, float]]]
    seconds: dict[str, dict[int, float]]
    settings: dict[str, Any]

    @property
    def baseline(self) -> str:
        """The first variant."""
        return next(iter(self.values))

    def estimate(self, variant: str, metric: str) -> Estimate:
        """Return a metric of a variant over the seeds."""
        return Estimate.of([metrics[metric] for metrics in self.values[variant].values()])

    def difference(self, variant: str, metric: str) -> Estimate:
        """Return a variant minus the baseline, paired by seed: what is common to a seed cancels."""
        other = self.values[self.baseline]
        return Estimate.of([metrics[metric] - other[seed][metric] for seed, metrics in self.values[variant].items()])

    def table(self, metrics: Mapping[str, str], *, digits: int = 3) -> str:
        """Return Markdown: one row per variant; for each metric one column, and one of its paired difference to the baseline.

        Args:
            metrics: Titles of the columns by metric.
            digits: Number of digits after the point.
        """
        titles = [title for name in metrics.values() for title in (name, f"difference to {self.baseline}")]
        lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
        for variant in self.values:
            cells = []
            for metric in metrics:
                cells.append(self.estimate(variant, metric).text(digits))
                is_baseline = variant == self.baseline
                cells.append("" if is_baseline else self.difference(variant, metric).text(digits, signed=True))
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def run_study(
    variants: Mapping[str, Run], *, seeds: Sequence[int], out: str | Path, settings: Mapping[str, Any]
) -> StudyResult:
    """Run what is not there yet, seed by seed, so that a stopped study still has whole seeds; return all of it.

    Args:
        variants: Runs by name; the first is the baseline. A run gets the seed and a folder, `out/<variant>/seed-<seed>`, and
            returns finite numbers by name. Names become folders.
        seeds: Seeds, the same for every variant.
        out: Folder of the study. `study.json` in it holds everything at the end.
        settings: JSON values that say what the runs have in common (data, budget, models) under any keys, and how each variant
            differs under the variant's name. A result of a variant whose entry, or of a study whose common part has changed since is
            refused.

    Raises:
        ValueError: If there is no variant or seed, a name does not serve as a folder, a run returns no or a non-finite number, or a
            result in `out` is of other settings.
    """
    if not variants or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"variants are {list(variants)}, seeds are {list(seeds)}; expected at least one, all different"
        )
    for name in variants:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"variant is named {name!r}, expected a name that serves as a folder")
    folder = check_writable(out)
    console = Console(stderr=True)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for seed in seeds:
        for name, run in variants.items():
            found[name, seed] = _run_or_read(folder / name / f"seed-{seed}", name, run, seed, variants, settings)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found[name, seed]["metrics"].items())
            console.print(f"[bold]{name}[/] seed {seed}: {shown}", highlight=False)
    result = StudyResult(
        values={name: {seed: found[name, seed]["metrics"] for seed in seeds} for name in variants},
        seconds={name: {seed: found[name, seed]["seconds"] for seed in seeds} for name in variants},
        settings=dict(settings),
    )
    write_json(folder / "study.json", dataclasses.asdict(result))
    return result


def _run_or_read(
    folder: Path, name: str, run: Run, seed: int, variants: Mapping[str, Run], settings: Mapping[str, Any]
) -> dict[str, Any]:
    # What concerns other variants only does not make this one's results stale.
    mine = fingerprint({key: value for key, value in settings.items() if key == name or key not in variants})
    path = folder / _RESULT
    if path.is_file():
        saved: dict[str, Any] = json.loads(path.read_text())
        if saved["settings"] != mine:
            raise ValueError(f"{str(path)!r} is a result of other settings; choose another folder, or delete it")
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    metrics = {key: float(value) for key, value in run(seed, folder).items()}
    bad = {key: value for key, value in metrics.items() if not math.isfinite(value)}
    if bad or not metrics:
        raise ValueError(f"variant {name!r}, seed {seed}, measured {bad or 'nothing'}; expected finite numbers")
    saved = {"metrics": metrics, "seconds": time.perf_counter() - started, "settings": mine}
    write_json(path, saved)
    return saved


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySettings(Checked):
    """What every study is told.

    Attributes:
        out: Folder of all runs and results.
        seeds: Seeds of every variant.
    """

    out: str = "runs/study"
    seeds: tuple[int, ...] = (0, 1, 2)


S = TypeVar("S", bound=StudySettings)


class Study(Generic[S]):
    """Base of studies whose parts each are a table of variants by seeds.

    Args:
        settings: Budget and data of the study.

    Attributes:
        FREE: Names of settings that may change without making results stale.
        out: Folder of all runs and results.
    """

    FREE: ClassVar[tuple[str, ...]] = ("out", "seeds")

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.out = Path(settings.out)

    def common(self) -> dict[str, Any]:
        """Return JSON values that all runs have in common: the settings, unless a study says more."""
        settings = dataclasses.asdict(self.settings)
        return {key: value for key, value in settings.items() if key not in self.FREE}

    def run(
        self,
        part: str,
        run: Callable[[str, int, Path], Mapping[str, float]],
        names: Sequence[str],
        changes: Mapping[str, Any] | None = None,
    ) -> StudyResult:
        """Run what is not there yet of one part of the study; return all of it. See `run_study`.

        Args:
            part: Name of the part, and of its folder.
            run: Maps the name of a variant, a seed and a folder of the run's own to finite numbers by name.
            names: Variants; the first is the baseline.
            changes: How each variant differs, as JSON values by its name, and whatever else the part depends on.
        """
        return run_study(
            {name: functools.partial(run, name) for name in names},
            seeds=self.settings.seeds,
            out=self.out / part,
            settings={**self.common(), **(changes or {})},
        )
