"""Independent jobs over processes that may hang or die: a lost worker costs one job, not the run.

The standard pools break as a whole when a worker is killed (out of memory, a crash in compiled code), and cannot stop one job.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, Literal, TypeVar

from hiergen.environment import require

Job = TypeVar("Job")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What became of one job.

    Attributes:
        index: Place of the job among all jobs.
        status: "done"; "failed" with the traceback as text; "timeout"; or "died", if the worker vanished.
        value: What the function returned, if done.
        message: What went wrong, otherwise.
    """

    index: int
    status: Literal["done", "failed", "timeout", "died"]
    value: Value | None = None
    message: str = ""


def run_isolated(
    function: Callable[[Job], Value], jobs: Sequence[Job], *, num_workers: int, timeout: float
) -> Iterator[Outcome[Value]]:
    """Yield the outcome of `function(job)` for every job, as they finish.

    Args:
        function: A module-level function; it and the jobs are pickled.
        jobs: What to work on.
        num_workers: Number of processes; 0 works in this one, where neither timeouts nor crashes can be contained and exceptions
            propagate.
        timeout: Seconds after which a job's worker is killed.

    Raises:
        ValueError: If `num_workers` is negative.
        RuntimeError: If workers die before they could take a job: then none can work.
        ImportError: If pebble is not installed and there are workers.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}, expected at least 0")
    if num_workers == 0:
        for index, job in enumerate(jobs):
            yield Outcome(index, "done", function(job))
        return
    pebble = require("pebble", "shapes", "work in several processes")
    waiting = set(range(len(jobs)))
    while waiting:
        # A fresh interpreter: forking a process that has threads (any with PyTorch) can deadlock the child.
        pool = pebble.ProcessPool(num_workers, context=multiprocessing.get_context("spawn"))
        try:
            submitted = {
                pool.schedule(_attempt, (function, jobs[index]), timeout=timeout): index for index in sorted(waiting)
            }
            before = len(waiting)
            for future in as_completed(submitted):
                outcome: Outcome[Value] | None = _outcome(future, submitted[future], timeout)
                if outcome is not None:
                    waiting.remove(outcome.index)
                    yield outcome
            if len(waiting) == before:
                raise RuntimeError(
                    "worker processes cannot start (see above); a script that starts workers must do so under "
                    '`if __name__ == "__main__":`'
                )
        finally:
            pool.stop()
            pool.join()


def _attempt(function: Callable[[Any], Any], job: Any) -> tuple[bool, Any]:
    """Return whether the job was done and its value or traceback: not every exception survives being pickled."""
    try:
        return True, function(job)
    except Exception:
        return False, traceback.format_exc()


def _outcome(future: Future[tuple[bool, Any]], index: int, timeout: float) -> Outcome[Any] | None:
    """Return what became of a job; None where the pool broke before it could say."""
    error = future.exception()
    if error is None:
        is_done, value = future.result()
        return Outcome(index, "done", value) if is_done else Outcome(index, "failed", message=value)
    if isinstance(error, BrokenProcessPool):
        return None
    if isinstance(error, TimeoutError):
        return Outcome(index, "timeout", message=f"took longer than {timeout:g} s")
    code = getattr(error, "exitcode", None)
    if code is None:
        # The job cannot be pickled.
        raise error
    cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Outcome(index, "died", message=f"its process died ({cause})")
