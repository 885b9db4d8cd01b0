"""A computation that reports by callback, as a generator that can be stopped and has a time limit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


#: Seconds between two reports of mere progress: each costs the server about as much as a step of a small model.
EVERY = 0.25


class StoppedError(RuntimeError):
    """The computation was stopped, or took longer than it may."""


def thinned(values: Iterable[T], news: Callable[[T], object], *, every: float = EVERY) -> Iterator[T]:
    """Yield the values whose `news` differs from that of the last one, and otherwise at most one value in `every` seconds."""
    before: object = None
    last = float("-inf")
    for value in values:
        now = news(value)
        if now != before or time.monotonic() - last >= every:
            yield value
            before, last = now, time.monotonic()


def stream_steps(run: Callable[[Callable[[T], None]], None], *, seconds: float) -> Iterator[T]:
    """Yield what `run` reports while it runs in a thread of its own.

    Args:
        run: Called with a function `report`; each value handed to `report` is yielded. `report` raises `StoppedError` inside
            `run` once the consumer has closed this generator, or the time is over: so a stopped request stops computing.
        seconds: Time limit, looked at whenever something is reported.

    Raises:
        StoppedError: If the time was over.
        Exception: Whatever `run` raises.
    """
    values: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue()
    closed = threading.Event()
    deadline = time.monotonic() + seconds

    def report(value: T) -> None:
        if closed.is_set():
            raise StoppedError("stopped")
        if time.monotonic() > deadline:
            raise StoppedError(f"stopped after {seconds:g} seconds, the limit of this demo")
        values.put(("value", value))

    def work() -> None:
        try:
            run(report)
            values.put(("end", None))
        except BaseException as error:
            # Handed to the consumer, which raises it again.
            values.put(("error", error))

    worker = threading.Thread(target=work, daemon=True, name="hiergen-demo-step")
    worker.start()
    try:
        while True:
            kind, value = values.get()
            if kind == "end":
                return
            if kind == "error":
                raise value  # type: ignore[misc]  # an exception, by its kind
            yield value  # type: ignore[misc]  # a value, by its kind
    finally:
        closed.set()
        worker.join()
