"""Parts that end as a GPU's do on a bad day; in forked processes, which need no module of their own to be imported."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from typing import Any

import pytest

from hiergen.benchmarks.measuring import parts
from hiergen.benchmarks.measuring.parts import Part, Pieces, attempt, run_parts


@pytest.fixture(autouse=True)
def _forked(monkeypatch) -> None:
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(parts.multiprocessing, "get_context", lambda method: fork)


def whole(sizes: Any) -> Pieces:
    yield "sizes", sizes
    yield "pid", os.getpid()


def broken(sizes: Any) -> Pieces:
    yield "before", 1
    raise RuntimeError("an illegal memory access was encountered")


def dying(sizes: Any) -> Pieces:
    yield "before", 2
    os._exit(7)


def hanging(sizes: Any) -> Pieces:
    yield "before", 3
    time.sleep(600)


def test_a_part_that_ends_badly_leaves_the_others_whole(tmp_path, capsys) -> None:
    output = tmp_path / "folder" / "found.json"
    chosen = {
        "broken": Part(broken, 1.0),
        "dying": Part(dying, 1.0),
        "hanging": Part(hanging, 5.0),
        "whole": Part(whole, 100.0),
    }
    started = time.monotonic()
    found = run_parts(chosen, "small", seconds=60.0, output=output)
    assert time.monotonic() - started < 30
    assert json.loads(output.read_text()) == found
    entries = found["parts"]
    assert {name: entry["state"] for name, entry in entries.items()} == {
        "broken": "failed", "dying": "died", "hanging": "out of time", "whole": "done",
    }  # fmt: skip
    assert [entries[name]["found"] for name in ("broken", "dying", "hanging")] == [{"before": n} for n in (1, 2, 3)]
    assert "RuntimeError: an illegal memory access was encountered" in entries["broken"]["traceback"]
    assert entries["dying"]["exit_code"] == 7
    assert entries["whole"]["found"]["sizes"] == "small"
    assert entries["whole"]["found"]["pid"] != os.getpid()
    # Five of 105 that are left, and what others did not need goes to the last.
    assert entries["hanging"]["limit"] == pytest.approx(60 * 5 / 105, rel=0.05)
    assert entries["whole"]["limit"] > 50
    assert "hanging: out of time after " in capsys.readouterr().err


def test_the_file_is_written_after_every_part(tmp_path, monkeypatch) -> None:
    seen = []
    write = parts.write_json
    monkeypatch.setattr(
        parts, "write_json", lambda path, value: (write(path, value), seen.append(list(value["parts"])))
    )
    run_parts({"a": Part(whole, 1.0), "b": Part(broken, 1.0)}, 0, seconds=20.0, output=tmp_path / "found.json")
    assert seen == [["a"], ["a", "b"]]


def test_a_case_may_fail_alone() -> None:
    assert attempt(lambda: 3) == 3
    assert "ZeroDivisionError" in attempt(lambda: 1 / 0)["error"]
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
