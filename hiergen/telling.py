"""What programs tell the person who runs them: counted things, progress, and the command that follows."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

#: Seconds without a line after which one says how far a program is, where the output is no terminal.
INTERVAL = 10.0
#: When the last line was said, in seconds of the monotonic clock.
_last = {"said": 0.0}


def counted(count: int, unit: str) -> str:
    """Return a count with its unit, e.g. "1 token", "2,000 tokens", "3 classes", "4 meshes"."""
    plural = f"{unit}es" if unit.endswith(("s", "sh")) else f"{unit}s"
    return f"{count:,} {unit if count == 1 else plural}"


def say(text: str) -> None:
    """Print a line that is no result, at once: results alone are on the standard output."""
    print(text, file=sys.stderr, flush=True)
    _last["said"] = time.monotonic()


def say_next(command: str) -> None:
    """Print, as the last line of a program, the command that naturally follows."""
    print(f"next: {command}", flush=True)


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show how far a program is; what is given is called with the number of things done, ascending or not.

    A terminal shows a bar with the time left; a pipe, a log file or a job of a cluster gets a line wherever nothing was said for ten
    seconds.

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
    state, started = {"done": done}, time.monotonic()

    def line() -> str:
        now, spent = state["done"], time.monotonic() - started
        left = f", about {spent / (now - done) * (total - now):.0f} s left" if now > done else ""
        return f"{what}: {now:,} of {counted(total, unit)} after {spent:.0f} s{left}"

    with _said_regularly(line):
        yield lambda now: state.update(done=now)


def waiting(what: str) -> contextlib.AbstractContextManager[None]:
    """Say every ten seconds that a program still does something of which it does not know how far it is.

    Args:
        what: What it does, e.g. "train: reading data".
    """
    started = time.monotonic()
    return _said_regularly(lambda: f"{what}, {time.monotonic() - started:.0f} s so far")


@contextlib.contextmanager
def _said_regularly(line: Callable[[], str]) -> Iterator[None]:
    """Inside, say a line wherever nothing was said for `INTERVAL` seconds."""
    ended, started = threading.Event(), time.monotonic()

    def tell() -> None:
        # By the clock and not by what is done: a single long step must not look like a program that hangs.
        pause = INTERVAL
        while not ended.wait(pause):
            silent = time.monotonic() - max(started, _last["said"])
            pause = INTERVAL - silent if silent < INTERVAL else INTERVAL
            if silent >= INTERVAL:
                say(line())

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
