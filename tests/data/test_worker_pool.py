from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from pickle import PicklingError

import pytest

from hiergen.data.worker_pool import run_isolated

#: Workers import the function by name, and test modules have none that another process could use.
MODULE = """
import os
import time


def obey(job):
    if job == "die":
        os._exit(3)
    if job == "killed":
        os.kill(os.getpid(), 9)
    if job == "hang":
        time.sleep(600)
    if job == "raise":
        raise KeyError("lost")
    return job.upper()
"""


@pytest.fixture
def obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    (tmp_path / "obedient_jobs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    function: Callable[[str], str] = importlib.import_module("obedient_jobs").obey
    return function


def test_a_lost_or_hanging_worker_costs_one_job(obey: Callable[[str], str]) -> None:
    jobs = ["a", "die", "hang", "raise", "killed", "b"]
    outcomes = {outcome.index: outcome for outcome in run_isolated(obey, jobs, num_workers=2, timeout=3.0)}
    assert sorted(outcomes) == list(range(6))
    assert [outcomes[index].status for index in range(6)] == ["done", "died", "timeout", "failed", "died", "done"]
    assert (outcomes[0].value, outcomes[5].value) == ("A", "B")
    assert outcomes[1].message == "its process died (exit code 3)"
    assert outcomes[2].message == "took longer than 3 s"
    assert "KeyError: 'lost'" in outcomes[3].message
    assert outcomes[4].message == "its process died (signal SIGKILL)"


def test_a_job_that_cannot_be_sent_is_an_error(obey: Callable[[str], str]) -> None:
    with pytest.raises((AttributeError, PicklingError), match="ickle"):
        list(run_isolated(obey, [lambda: None], num_workers=1, timeout=60.0))  # type: ignore[list-item]


def test_leaving_early_ends_the_workers(obey: Callable[[str], str]) -> None:
    before = set(multiprocessing.active_children())
    outcomes = run_isolated(obey, ["a", "hang", "hang"], num_workers=2, timeout=600.0)
    assert next(outcomes).value == "A"
    outcomes.close()
    assert set(multiprocessing.active_children()) <= before


def test_workers_that_cannot_start_are_an_error(
    obey: Callable[[str], str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "obedient_jobs.py").write_text("raise ImportError('not here')")
    with pytest.raises(RuntimeError, match=r"worker processes cannot start \(see above\).*__main__"):
        list(run_isolated(obey, ["a", "b"], num_workers=1, timeout=60.0))
    assert "not here" in capfd.readouterr().err


def test_without_workers_jobs_run_here_and_errors_propagate(obey: Callable[[str], str]) -> None:
    assert [outcome.value for outcome in run_isolated(obey, ["a", "b"], num_workers=0, timeout=60.0)] == ["A", "B"]
    with pytest.raises(KeyError, match="lost"):
        list(run_isolated(obey, ["raise"], num_workers=0, timeout=60.0))
    assert list(run_isolated(obey, [], num_workers=2, timeout=60.0)) == []
    with pytest.raises(ValueError, match="num_workers is -1, expected at least 0"):
        list(run_isolated(obey, ["a"], num_workers=-1, timeout=60.0))
