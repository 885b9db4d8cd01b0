from __future__ import annotations

import threading
import time

import pytest

from hiergen.demo.steps import StoppedError, stream_steps, thinned


def threads() -> int:
    return sum(thread.name == "hiergen-demo-step" for thread in threading.enumerate())


def test_what_is_reported_is_yielded_in_order() -> None:
    assert list(stream_steps(lambda report: [report(k) for k in range(5)], seconds=60.0)) == [0, 1, 2, 3, 4]
    assert threads() == 0


def test_values_come_while_the_work_goes_on() -> None:
    seen = threading.Event()

    def run(report) -> None:
        report("first")
        # Ends only if the consumer got the first value before the work was over.
        assert seen.wait(10)
        report("second")

    steps = stream_steps(run, seconds=60.0)
    assert next(steps) == "first"
    seen.set()
    assert list(steps) == ["second"]


def test_an_error_reaches_the_consumer() -> None:
    def run(report) -> None:
        report(1)
        raise ValueError("no such class")

    steps = stream_steps(run, seconds=60.0)
    assert next(steps) == 1
    with pytest.raises(ValueError, match="no such class"):
        next(steps)


def test_closing_stops_the_work() -> None:
    done = []

    def run(report) -> None:
        for k in range(1_000_000):
            report(k)
            done.append(k)

    steps = stream_steps(run, seconds=60.0)
    next(steps)
    steps.close()
    assert threads() == 0
    assert len(done) < 1_000_000


def test_the_time_limit_stops_the_work() -> None:
    def run(report) -> None:
        started = time.monotonic()
        while True:
            report(time.monotonic() - started)

    with pytest.raises(StoppedError, match=r"stopped after 0\.05 seconds, the limit of this demo"):
        list(stream_steps(run, seconds=0.05))
    assert threads() == 0


def test_reports_are_thinned_to_news_and_signs_of_life() -> None:
    steps = [("a", 0), ("b", 0), ("c", 0), ("d", 1), ("e", 1), ("f", 0)]
    assert list(thinned(steps, lambda step: step[1], every=60.0)) == [("a", 0), ("d", 1), ("f", 0)]
    assert list(thinned(steps, lambda step: step[1], every=0.0)) == steps
    assert list(thinned([], lambda step: step)) == []
