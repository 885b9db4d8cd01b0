"""A live progress bar with losses and time left, silent where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_HIDDEN = {"samples", "lr", "samples_per_second", "grad_norm", "data_wait", "peak_memory_gib", "tflops_per_second"}


class TrainProgress:
    """Shows samples seen of samples to see, and the last logged terms."""

    def __init__(self, title: str, total: int, quiet: bool) -> None:
        console = Console(stderr=True)
        self._plain = console if not console.is_terminal and not quiet else None
        self._title = title
        self._total = total
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} samples"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._bar = self._progress.add_task(title, total=total, terms="")

    def __enter__(self) -> TrainProgress:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def advance(self, samples_seen: int) -> None:
        self._progress.update(self._bar, completed=min(samples_seen, self._total))

    def show(self, line: dict[str, float]) -> None:
        terms = "  ".join(f"{name} {value:.4g}" for name, value in line.items() if name not in _HIDDEN)
        self._progress.update(self._bar, terms=terms)
        if self._plain is not None:
            done = line["samples"] / self._total
            self._plain.print(
                f"{self._title} {done:4.0%}  {terms}  {line['samples_per_second']:.0f} samples/s",
                highlight=False,
                soft_wrap=True,
            )
