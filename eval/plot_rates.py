"""Quality against rate of several tokenizers in one picture, from their reports: of one with levels a curve, of one with a single rate a point.

    python eval/plot_rates.py evaluation/first evaluation/second --names small large

Reports must be comparable, as `hiergen evaluate compare` has it: the same kind, extractor and rules. Numbers of images should be equal,
because a Fréchet distance of fewer is larger.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import tyro

from hiergen.evaluation.comparison import check_comparable, load_report
from hiergen.evaluation.images.rate_distortion import draw_rates, with_intervals
from hiergen.files import check_writable


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drawn.

    Attributes:
        reports: Folders of reports, or their report.json.
        names: Names of the tokenizers in the picture; their folders' names by default.
        rate: Size of a code on the x axis: "bits" (a real number counts as 16), "tokens" (which differ in kind) or "numbers" (continuous
            tokens).
        out: File of the picture.
    """

    reports: tyro.conf.Positional[tuple[str, ...]]
    names: tuple[str, ...] = ()
    rate: Literal["bits", "tokens", "numbers"] = "bits"
    out: str = "evaluation/rates.png"


def plot(settings: Settings) -> dict[str, list[Any]]:
    """Draw the picture and return its rows by name.

    Raises:
        ValueError: If reports are missing, no two are comparable, names do not match, or a report has no such rate.
    """
    names = settings.names or tuple(Path(path).resolve().name for path in settings.reports)
    if len(names) != len(settings.reports) or len(set(names)) < len(names) or not names:
        raise ValueError(
            f"there are {len(settings.reports)} reports and the names {names}, expected one each, all different"
        )
    stored = [load_report(path) for path in settings.reports]
    for first, second in itertools.pairwise(stored):
        check_comparable(first, second)
    curves = {name: with_intervals(found.report) for name, found in zip(names, stored, strict=True)}
    for name, rows in curves.items():
        if not rows or (settings.rate != "bits" and any(row[settings.rate] is None for row in rows)):
            raise ValueError(f"report {name!r} has no {settings.rate}: choose another --rate, or reports of tokenizers")
    check_writable(Path(settings.out).parent)
    draw_rates(settings.out, curves, rate=settings.rate)
    return curves


if __name__ == "__main__":
    settings = tyro.cli(Settings, prog="plot_rates", description=__doc__)
    plot(settings)
    print(settings.out)
