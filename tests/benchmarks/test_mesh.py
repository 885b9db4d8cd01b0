from __future__ import annotations

import json

import pytest

from hiergen.benchmarks.mesh import run
from hiergen.benchmarks.settings import MeshSettings


def test_run_counts_and_times_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(json.dumps(run(MeshSettings(depths=(4,), coarse_depth=2, device="cpu"))))
    assert [(row["shape"], row["nodes"]) for row in result["rows"]] == [("sphere", 17), ("table", 17)]
    for row in result["rows"]:
        assert row["dense_queries"] == 17**3
        assert row["times_fewer"] == pytest.approx(17**3 / row["queries"])
        assert row["times_fewer"] >= 1
        assert row["times_faster"] == pytest.approx(row["dense_s"] / row["seconds"])
        assert row["is_equal"] is True
    assert result["tokens_s"] > 0
    assert "pyramid-vae-tiny" in capsys.readouterr().out
    scaled = run(MeshSettings(depths=(3,), shapes=("sphere",), dense_share=0.2, chunk_size=500, device="cpu"))
    assert scaled["rows"][0]["is_equal"] is None
    assert scaled["rows"][0]["dense_s"] > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"dense_share is 0\.0, expected more than 0"):
        MeshSettings(dense_share=0.0)
    with pytest.raises(ValueError, match="nothing to measure"):
        MeshSettings(depths=())
    with pytest.raises(ValueError, match="preset 'har-b' is a LevelAR, expected a PyramidVAE"):
        run(MeshSettings(preset="har-b"))
