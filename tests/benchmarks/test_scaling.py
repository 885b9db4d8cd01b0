"""`hiergen bench scaling` on work of known growth, every kind of work at its smallest size, and the page made of the file."""

from __future__ import annotations

import json
import multiprocessing
import time

import numpy as np
import pytest
import torch

from hiergen.benchmarks import scaling
from hiergen.benchmarks.measuring import growth, tables
from hiergen.benchmarks.measuring.growth import GROWTHS, Growth
from hiergen.benchmarks.measuring.tables import scaling_tables, write_scaling
from hiergen.benchmarks.settings import ScalingSettings
from hiergen.cli.bench import main as bench


def square(size: int, seed: int, device: torch.device):
    """Work that takes size² hundredths of a second and 4 size² MiB."""

    def call() -> float:
        held, end = np.ones((4 * size**2, 1 << 17)), time.process_time() + 0.01 * size**2
        while time.process_time() < end:
            pass
        return held.sum()

    return call


def failing(size: int, seed: int, device: torch.device):
    raise RuntimeError(f"no {size}")


STUBS = {
    "square": Growth("squares", "sides", square, (3, 6, 9), (1, 3, 6), "1", 1.2),
    "failing": Growth("nothing", "rows", failing, (1, 2), (1, 2)),
}


@pytest.fixture
def stubs(monkeypatch) -> None:
    """Known work, in forked processes: others would not know it."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(scaling.multiprocessing, "get_context", lambda method: fork)
    monkeypatch.setattr(scaling, "GROWTHS", STUBS)


def test_exponents_of_known_work(stubs, tmp_path, capsys) -> None:
    output = tmp_path / "scaling.json"
    bench(["scaling", "--quick", "--output", str(output), "--device", "cpu"])
    found = json.loads(output.read_text())
    squares = found["growths"]["square"]
    assert squares["sizes"] == [1, 3, 6]
    assert squares["time"]["last"] == pytest.approx(2, abs=0.5)
    assert squares["memory"]["last"] == pytest.approx(2, abs=0.4)
    # The smallest is lost in what was held before.
    assert squares["bytes"][2] == pytest.approx(144 << 20, rel=0.2)
    assert squares["is_too_steep"]
    failed = found["growths"]["failing"]
    assert failed["time"] is failed["memory"] is None
    assert not failed["is_too_steep"]
    assert "RuntimeError: no 1" in failed["failed"]["2"], "it is warmed up at the smallest size"
    printed = capsys.readouterr()
    assert "failing at 2: RuntimeError: no 1" in printed.err
    assert "steeper than it need be" in " ".join(printed.out.split())
    page = tmp_path / "scaling.md"
    begin, end = (mark.format("scaling") for mark in tables.MARKS)
    page.write_text(f"# Cost\n{begin}\nold\n{end}\nmore\n")
    write_scaling(found, page)
    text = scaling_tables(found)
    assert page.read_text() == f"# Cost\n{begin}\n\n{text}\n\n{end}\nmore\n"
    assert "By the last two sizes steeper than expected: squares." in text
    assert "| **squares** | sides | " in text
    assert "| nothing | rows | too little | - | 1 | too little | - |" in text
    assert "Not measured: nothing at 1; nothing at 2." in text


@pytest.mark.parametrize("name", GROWTHS)
def test_every_kind_of_work_runs(name) -> None:
    kind = GROWTHS[name]
    assert sorted(kind.sizes) == list(kind.sizes)
    assert sorted(kind.quick) == list(kind.quick)
    assert kind.quick[0] < kind.sizes[0]
    kind.make(kind.quick[0], 0, torch.device("cpu"))()


def test_unknown_work_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="only names 'hor', which is no kind of work; did you mean har"):
        scaling.run(ScalingSettings(only=("hor",), output=tmp_path / "scaling.json"))


def test_work_has_the_size_that_it_says() -> None:
    assert growth.var_tokens(14, 0, torch.device("cpu"))().num_tokens == 14
    assert growth.har_tokens(16, 0, torch.device("cpu"))().num_tokens == 16
