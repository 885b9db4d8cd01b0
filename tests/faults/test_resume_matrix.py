from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from hiergen.training.checkpoints.run_state import RunKeeper

_spec = importlib.util.spec_from_file_location("resume_matrix", Path(__file__).with_name("resume_matrix.py"))
matrix = importlib.util.module_from_spec(_spec)
sys.modules["resume_matrix"] = matrix
_spec.loader.exec_module(matrix)


def test_a_case_holds_and_one_that_does_not_is_seen(tmp_path, monkeypatch) -> None:
    task = matrix.KINDS["HAR"](tmp_path)
    whole = matrix.train(task, tmp_path / "whole")
    assert sorted(whole["samples"]) == list(range(matrix.STEPS))
    assert len(whole["losses"]) == matrix.STEPS
    assert {"generator", "generator.optimizer", "ema"} < set(whole)
    stop = matrix.STOPS["middle of an epoch"]
    assert matrix.differences(matrix.train(task, tmp_path / "parts", stop=stop), whole) == []
    restore = RunKeeper.restore

    def forgetting(self, state):
        notes = restore(self, state)
        state.ema.updates = 0
        return notes

    monkeypatch.setattr(RunKeeper, "restore", forgetting)
    assert matrix.differences(matrix.train(task, tmp_path / "wrong", stop=stop), whole) == ["ema"]
