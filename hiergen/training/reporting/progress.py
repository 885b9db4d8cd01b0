"""What a run tells: what it found, how far it is, and the terms of its log; a bar in a terminal, lines anywhere else."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.overview import describe_images
from hiergen.telling import counted, progress, say
from hiergen.training.tasks.base import Task, count_trained

_HIDDEN = {"samples", "lr", "samples_per_second", "grad_norm", "data_wait", "peak_memory_gib", "tflops_per_second"}


def describe_task(task: Task) -> str:
    """Return what was found for a run: its data with their classes, and its model with the number of parameters."""
    data = task.dataset
    if isinstance(data, ImageSet | PictureSet):
        found = describe_images(data)
    else:
        classes = getattr(data, "classes", ())
        found = counted(len(data), data.unit) + (f" of {counted(len(classes), 'class')}" if classes else "")
    count, trained = sum(parameter.numel() for parameter in task.model.parameters()), count_trained(task.model)
    some = f", {trained:,} of them trained," if trained != count else ""
    model = f"{type(task.model).__name__} of {count:,} parameters{some}"
    return f"{found}; {model}"


class TrainProgress:
    """Shows samples seen of samples to see, and the last logged terms.

    Args:
        title: Title of the bar, which begins every line.
        total: Number of samples to see.
        quiet: Whether nothing is shown, as by all processes but the first.
        done: Number of samples that were seen before.
    """

    def __init__(self, title: str, total: int, quiet: bool, *, done: int = 0) -> None:
        self._title, self._total = title, total
        console = Console(stderr=True)
        self._is_bar, self._is_quiet = console.is_terminal and not quiet, quiet
        self._lines: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if quiet or console.is_terminal else progress(title, total, "sample", done=done)
        )
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} samples"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            disable=not self._is_bar,
        )
        self._bar = self._progress.add_task(title, total=total, completed=done, terms="")

    def __enter__(self) -> TrainProgress:
        self._progress.start()
        self._advance_lines = self._lines.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._lines.__exit__(*(error or (None, None, None)))
        self._progress.stop()

    def advance(self, samples_seen: int) -> None:
        now = min(samples_seen, self._total)
        self._progress.update(self._bar, completed=now)
        if self._advance_lines is not None:
            self._advance_lines(now)

    def show(self, line: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4g}" for name, value in line.items() if name not in _HIDDEN)
        self._progress.update(self._bar, terms=terms)
        if not self._is_bar and not self._is_quiet:
            done = min(line["samples"] / self._total, 1)  # the last batch may see a few more
            say(f"{self._title} {done:4.0%}  {terms}  {line['samples_per_second']:.0f} samples/s")
