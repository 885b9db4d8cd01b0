"""What programs tell the person who runs them: counted things, progress, and the command that follows."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

#: Seconds between two lines of progress where the output is no terminal.
INTERVAL = 10.0


def counted(count: int, unit: str) -> str:
    """Return a count with its unit, e.g. "1 token", "2,000 tokens", "3 classes", "4 meshes"."""
    plural = f"{unit}es" if unit.endswith(("s", "sh")) else f"{unit}s"
    return f"{count:,} {unit if count == 1 else plural}"


def say(text: str) -> None:
    """Print a line that is no result, at once: results alone are on the standard output."""
    print(text, file=sys.stderr, flush=True)


def say_next(command: str) -> None:
    """Print, as the last line of a program, the command that naturally follows."""
    print(f"next: {command}", flush=True)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a program is; what is given is called with the number of things done, ascending or not.

    A terminal shows a bar with the time left; a pipe, a log file or a job of a cluster gets a line every ten seconds.

    Args:
        what: Name of the work, e.g. "encode".
        total: Number of things to do.
        unit: Name of one of them, e.g. "image".
        done: Number that an earlier run has done.
    """
    from rich import progress as bar
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (bar.BarColumn(), bar.MofNCompleteColumn(), bar.TimeElapsedColumn(), bar.TimeRemainingColumn())
        with bar.Progress(bar.TextColumn(what), *columns, console=console) as shown:
            task = shown.add_task(what, total=total, completed=done)
            yield lambda now: shown.update(task, completed=now)
        return
    state, started, ended = {"done": done}, time.monotonic(), threading.Event()

    def tell() -> None:
        # By the clock and not by what is done: a single long step must not look like a program that hangs.
        while not ended.wait(INTERVAL):
            now, spent = state["done"], time.monotonic() - started
            left = f", about {spent / (now - done) * (total - now):.0f} s left" if now > done else ""
            say(f"{what}: {now:,} of {counted(total, unit)} after {spent:.0f} s{left}")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield lambda now: state.update(done=now)
    finally:
        ended.set()
        thread.join()
