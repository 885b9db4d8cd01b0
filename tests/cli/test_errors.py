"""Which errors of a program become one sentence, and which keep their traceback."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from hiergen.__main__ import FAULT, explain, main
from hiergen.environment import require
from hiergen.training.config import TrainConfig
from hiergen.training.ema import Average
from hiergen.training.loop import RunInterruptedError
from hiergen.training.tasks.settings import TokenizerTaskConfig


def refused() -> None:
    TrainConfig(task=TokenizerTaskConfig(), out="x", samples=0)


def a_type_refused() -> None:
    from hiergen.config import to_json

    to_json(object())


def overflown() -> None:
    raise RunInterruptedError(15, 64)


class Refusing:
    """A data set whose samples hiergen refuses."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> None:
        refused()


class Faulty(Refusing):
    """A data set with a mistake in it."""

    def __getitem__(self, index: int) -> None:
        int("x")


EXPECTED = {
    "refused by hiergen": (refused, "samples is 0, expected at least 1", 1),
    "a type refused by hiergen": (a_type_refused, "a config cannot hold a object", 1),
    "a file that is not there": (
        lambda: Path("no-such-file").read_text(),
        "No such file or directory: 'no-such-file'",
        1,
    ),
    "a full disk": (lambda: Path("/dev/full").write_text("x"), "No space left", 1),
    "a package by its extra": (functools.partial(require, "no_such_package", "eval", "a metric"), "a metric needs", 1),
    "a package": (lambda: __import__("no_such_package"), "No module named 'no_such_package'", 1),
    "a data worker": (lambda: list(DataLoader(Refusing(), num_workers=1)), "hiergen x: samples is 0, expected", 1),
    "a signal": (overflown, "stopped by SIGTERM after 64 samples; run again to continue", 143),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_what_a_user_can_mend_is_one_sentence(kind, capsys) -> None:
    run, said, code = EXPECTED[kind]
    assert explain(run, "hiergen x") == code
    printed = capsys.readouterr().err
    assert printed.startswith("hiergen x: ")
    assert said in printed
    assert "Traceback" not in printed
    assert printed.count("\n") == 1


FAULTS = {
    "an interpreter's value": lambda: int("x"),
    "an interpreter's type": lambda: len(3),
    "a wrong call of hiergen": lambda: TrainConfig(sample=3),
    "a value inside hiergen": lambda: Average([torch.nn.Parameter(torch.ones(1))], decay=0.5).step([]),
    "a key": lambda: {}["x"],
    "an attribute": lambda: (3).x,
    "a module of hiergen": lambda: __import__("hiergen.no_such_module"),
    "a data worker": lambda: list(DataLoader(Faulty(), num_workers=1)),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_the_program_is_raised_and_asks_to_be_reported(kind, capsys) -> None:
    with pytest.raises(Exception, match=r"\w") as caught:
        explain(FAULTS[kind], "hiergen x")
    assert caught.value.__notes__ == [FAULT]
    assert capsys.readouterr().err == ""


def test_the_traceback_of_an_expected_error_is_shown_when_asked_for(capsys, monkeypatch) -> None:
    for words in (
        ["--traceback", "info", "no-such"],
        ["info", "no-such", "--traceback"],
        ["info", "--traceback", "no-such"],
    ):
        assert main(words) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("Traceback")
        assert "registry.py" in printed
        assert printed.splitlines()[-1].startswith("hiergen info: ")
    assert main(["info", "no-such"]) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HIERGEN_TRACEBACK", "1")
    assert main(["info", "no-such"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_fault_ends_a_program_with_its_traceback_and_the_note() -> None:
    program = "import hiergen.__main__ as m, hiergen.cli.info as v; v.main = lambda args: [][0]; raise SystemExit(m.main(['info']))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["IndexError: list index out of range", FAULT]
