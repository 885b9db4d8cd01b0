from __future__ import annotations

import json

import pytest

from hiergen.quickstart.stages import StageTimes


def test_a_stopped_run_keeps_the_time_it_spent_and_adds_to_it(tmp_path) -> None:
    path = tmp_path / "times.json"
    times = StageTimes(path)
    with pytest.raises(KeyboardInterrupt), times.stage("train"):
        raise KeyboardInterrupt
    assert list(StageTimes(path).seconds) == ["train"]
    path.write_text(json.dumps({"train": 10.0}))
    again = StageTimes(path)
    with again.stage("train"), again.stage("sample"):
        pass
    assert again.seconds["train"] >= 10
    assert again.total >= 10
    assert StageTimes(path).seconds == again.seconds
