"""Search the guidance scale of a class-to-image pipeline by hill climbing on any measure of its images.

Every value is written down as it is found, so a stopped search continues, and a search that is asked for more finds what is known.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from hiergen.checked import Checked
from hiergen.config import fingerprint
from hiergen.data.images.pixels import to_uint8
from hiergen.files import write_text
from hiergen.generators.guidance import GuidanceSchedule
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.seeding import SampleRng

#: Maps uint8 images, and the labels that were asked for, to a number of which less is better.
Measure = Callable[[UInt8[Tensor, "n 3 h w"], Int64[Tensor, " n"]], float]


@dataclasses.dataclass(frozen=True)
class SearchSettings(Checked):
    """What is searched, and with which draws.

    Attributes:
        schedule: Schedule of the guidance; see `GuidanceSettings`.
        start: First scale to try. ResTok's program starts the step schedule at 1.75 for HAR-L, at 2.5 for the base size.
        step: Distance of neighboring scales.
        minimum: Smallest scale to try; 1 is no guidance.
        windows: Pairs (window_start, window_end) to search, each from the best scale so far; empty for the schedule's own window.
        num_images: Number of images behind each value, with labels 0, 1, 2 ... in turn.
        batch_size: Number of images per call of the pipeline; no value depends on it.
        seed: Seed of the draws, the same for every scale, so that neighbors differ in the scale alone.
        sampling: Further settings of the generator, e.g. `top_p`.

    Raises:
        ValueError: If a number is out of its range.
    """

    schedule: GuidanceSchedule = "constant"
    start: float = 1.75
    step: float = 0.25
    minimum: float = 1.0
    windows: tuple[tuple[float, float], ...] = ()
    num_images: int = 1_000
    batch_size: int = 50
    seed: int = 0
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step <= 0:
            raise ValueError(f"step is {self.step}, expected above 0")
        if self.start < self.minimum:
            raise ValueError(f"start is {self.start}, expected at least minimum, {self.minimum}")
        if self.num_images < 1 or self.batch_size < 1:
            raise ValueError(f"num_images is {self.num_images} and batch_size {self.batch_size}, expected at least 1")


@dataclasses.dataclass(frozen=True)
class SearchPoint:
    """One value of a search: the guidance, and what was measured."""

    scale: float
    window: tuple[float, float] | None
    value: float


def search_guidance(
    pipeline: ClassToImagePipeline,
    measure: Measure,
    settings: SearchSettings,
    *,
    table: str | Path,
    metric: str,
    progress: Callable[[SearchPoint], None] = lambda point: None,
) -> list[SearchPoint]:
    """Return all points of a search, the best first.

    Args:
        pipeline: Pipeline in eval mode.
        measure: Measure of which less is better, e.g. a Fréchet distance.
        settings: What is searched, and with which draws.
        table: A CSV file to which every value is added. Values that it holds for the same models, settings and metric are taken from
            it; others stay in it untouched.
        metric: Name of the measure, with whatever it depends on: extractor, reference.
        progress: Function that is called with every point.

    Raises:
        ValueError: If the table is no such table.

    Source:
        ResTok's code (arXiv:2601.03955): the best scale so far, its upper and its lower neighbor, until both are known; windows
        0.10 to 0.80 and 0.50 to 1.00 in steps of 0.05 for the rectangular schedule.
    """
    key = _search_key(pipeline, settings, metric)
    known = _Table(Path(table), key, metric)
    best: SearchPoint | None = None
    found: list[SearchPoint] = []
    for window in settings.windows or (None,):

        def score(scale: float, window: tuple[float, float] | None = window) -> float:
            value = known.value(scale, window)
            if value is None:
                value = measure(*_generate(pipeline, settings, scale, window))
                known.add(scale, window, value)
            found.append(SearchPoint(scale, window, value))
            progress(found[-1])
            return value

        start = settings.start if best is None else best.scale
        climb(score, start=start, step=settings.step, minimum=settings.minimum)
        best = min(found, key=_order)
    return sorted(found, key=_order)


def climb(score: Callable[[float], float], *, start: float, step: float, minimum: float) -> dict[float, float]:
    """Return the values that hill climbing sees on its way to a scale whose two neighbors are no better.

    Args:
        score: Maps a scale to a number of which less is better.
        start: First scale to try.
        step: Distance of neighboring scales.
        minimum: Smallest scale to try.
    """
    # By whole steps, so that a scale that is met again is the same number.
    known = {0: score(start)}
    while True:
        best = min(known, key=lambda index: (known[index], abs(index)))
        neighbors = [
            index for index in (best + 1, best - 1) if index not in known and start + index * step >= minimum - 1e-9
        ]
        if not neighbors:
            return {start + index * step: value for index, value in known.items()}
        known[neighbors[0]] = score(start + neighbors[0] * step)


def rectangular_windows(*, step: float = 0.05) -> tuple[tuple[float, float], ...]:
    """Return the windows of ResTok's search: starts from 0.10 to 0.80, ends from 0.50 to 1.00, each end behind its start."""
    starts = [0.10 + step * k for k in range(round(0.70 / step) + 1)]
    ends = [0.50 + step * k for k in range(round(0.50 / step) + 1)]
    return tuple((round(start, 6), round(end, 6)) for start in starts for end in ends if start < end - 1e-9)


def _generate(
    pipeline: ClassToImagePipeline, settings: SearchSettings, scale: float, window: tuple[float, float] | None
) -> tuple[Tensor, Tensor]:
    labels = torch.arange(settings.num_images) % pipeline.generator.config["num_classes"]
    chosen = {**settings.sampling, "guidance_scale": scale, "guidance_schedule": settings.schedule}
    if window is not None:
        chosen |= {"window_start": window[0], "window_end": window[1]}
    parts = []
    for start in range(0, len(labels), settings.batch_size):
        part = labels[start : start + settings.batch_size]
        rng = SampleRng.of(range(start, start + len(part)), settings.seed, "guidance-search")
        images = pipeline(part.tolist(), generator=rng, output_type="pt", **chosen).images
        assert isinstance(images, Tensor)
        parts.append(to_uint8(images.cpu()))
    return torch.cat(parts), labels


def _search_key(pipeline: ClassToImagePipeline, settings: SearchSettings, metric: str) -> str:
    # Where the search begins and how far it goes does not change what a scale is worth.
    kept = dataclasses.asdict(settings)
    for name in ("start", "step", "minimum", "windows", "batch_size"):
        del kept[name]
    models = [tokenizer_fingerprint(model) for model in (pipeline.tokenizer, pipeline.generator)]
    return fingerprint({**kept, "metric": metric, "models": models})


class _Table:
    """A CSV file of values, rewritten whole and atomically."""

    COLUMNS = ("search", "metric", "scale", "window_start", "window_end", "value")

    def __init__(self, path: Path, key: str, metric: str) -> None:
        self._path, self._key, self._metric = path, key, metric
        self._rows: list[dict[str, str]] = []
        if path.is_file():
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
            self._rows = list(reader)
            if tuple(reader.fieldnames or ()) != self.COLUMNS:
                raise ValueError(
                    f"{str(path)!r} has the columns {reader.fieldnames}, expected {', '.join(self.COLUMNS)}: no table of a search"
                )

    def value(self, scale: float, window: tuple[float, float] | None) -> float | None:
        wanted = self._row(scale, window, "")
        for row in self._rows:
            if {**row, "value": ""} == wanted:
                return float(row["value"])
        return None

    def add(self, scale: float, window: tuple[float, float] | None, value: float) -> None:
        self._rows.append(self._row(scale, window, repr(value)))
        text = io.StringIO()
        writer = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._path, text.getvalue())

    def _row(self, scale: float, window: tuple[float, float] | None, value: str) -> dict[str, str]:
        start, end = ("", "") if window is None else (f"{window[0]:g}", f"{window[1]:g}")
        cells = (self._key, self._metric, f"{scale:g}", start, end, value)
        return dict(zip(self.COLUMNS, cells, strict=True))


def _order(point: SearchPoint) -> tuple[float, float]:
    return point.value, point.scale
