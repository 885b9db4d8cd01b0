"""Independent jobs over processes that may hang or die: a lost worker costs one job, not the run.

The standard pools break as a whole when a worker is killed (out of memory, a crash in compiled code), and cannot stop one job.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Literal, TypeVar

Job = TypeVar("Job")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What became of one job.

    Attributes:
        index: Of the job.
        status: "done"; "failed" with the traceback as text; "timeout"; or "died", if the worker vanished.
        value: What the function returned, if done.
        message: What went wrong, otherwise.
    """

    index: int
    status: Literal["done", "failed", "timeout", "died"]
    value: Value | None = None
    message: str = ""


@dataclasses.dataclass
class _Worker:
    """A process; `index` is its job, `_IDLE`, or `_STARTING` until it has reported for work."""

    process: BaseProcess
    pipe: Connection
    index: int
    started: float = 0.0


_IDLE, _STARTING = -1, -2


def run_isolated(
    function: Callable[[Job], Value], jobs: Sequence[Job], *, num_workers: int, timeout: float | None = None
) -> Iterator[Outcome[Value]]:
    """Yield the outcome of `function(job)` for every job, as they finish.

    Args:
        function: A module-level function; it and the jobs are pickled.
        jobs: What to work on.
        num_workers: Processes; 0 works in this one, where neither timeouts nor crashes can be contained and exceptions propagate.
        timeout: Seconds after which a job's worker is killed.

    Raises:
        ValueError: If `num_workers` is negative.
        RuntimeError: If a worker dies before it could take a job: then none can work.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers is {num_workers}, expected at least 0")
    if num_workers == 0:
        for index, job in enumerate(jobs):
            yield Outcome(index, "done", function(job))
        return
    # A fresh interpreter: forking a process that has threads (any with PyTorch) can deadlock the child.
    context = multiprocessing.get_context("spawn")
    waiting = list(range(len(jobs)))[::-1]
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.index >= 0 for worker in workers):
            while waiting and len(workers) < num_workers:
                workers.append(_start(context, function))
            for worker in workers:
                if waiting and worker.index == _IDLE:
                    _assign(worker, waiting.pop(), jobs)
            for worker in _ready(workers, timeout):
                if worker.index == _STARTING:
                    _welcome(worker)
                    continue
                outcome: Outcome[Value] = _collect(worker, timeout)
                if outcome.status in ("timeout", "died"):
                    workers.remove(worker)
                    _stop(worker)
                worker.index = _IDLE
                yield outcome
    finally:
        for worker in workers:
            _stop(worker)


def _start(context: Any, function: Callable[[Any], Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours, _STARTING)


def _welcome(worker: _Worker) -> None:
    try:
        worker.pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        worker.process.join()
        raise RuntimeError(
            f"worker processes cannot start (exit code {worker.process.exitcode}, see above); a script that starts workers "
            'must do so under `if __name__ == "__main__":`'
        ) from error
    worker.index = _IDLE


def _assign(worker: _Worker, index: int, jobs: Sequence[Any]) -> None:
    worker.index, worker.started = index, time.monotonic()
    try:
        worker.pipe.send(jobs[index])
    except (BrokenPipeError, ConnectionResetError):
        # Died while idle; `_collect` finds its end closed and reports the job.
        return


def _ready(workers: list[_Worker], timeout: float | None) -> list[_Worker]:
    """Return the workers that started, answered, died or ran out of time; waits for the first."""
    busy = [worker for worker in workers if worker.index >= 0]
    patience = None
    if timeout is not None and busy:
        patience = max(0.0, min(worker.started for worker in busy) + timeout - time.monotonic())
    expected = [worker for worker in workers if worker.index != _IDLE]
    answered = set(map(id, wait([worker.pipe for worker in expected], patience)))
    now = time.monotonic()
    return [
        worker
        for worker in expected
        if id(worker.pipe) in answered
        or (timeout is not None and worker.index >= 0 and now - worker.started >= timeout)
    ]


def _collect(worker: _Worker, timeout: float | None) -> Outcome[Any]:
    if not worker.pipe.poll():
        return Outcome(worker.index, "timeout", message=f"took longer than {timeout:g} s")
    try:
        is_done, value = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome(worker.index, "died", message=f"its process died ({cause})")
    if is_done:
        return Outcome(worker.index, "done", value)
    return Outcome(worker.index, "failed", message=value)


def _stop(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
    worker.process.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    # Ctrl-C reaches the whole group of processes; the parent decides what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send("ready")
    while True:
        try:
            job = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = (True, function(job))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)
