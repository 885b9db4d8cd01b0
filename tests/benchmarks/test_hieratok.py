from __future__ import annotations

import json

import pytest

from hiergen.benchmarks.hieratok import run
from hiergen.benchmarks.settings import HieraTokSettings


def test_run_measures_both_forms_and_they_agree(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(HieraTokSettings(preset="hieratok-tiny", depth=1, batches=(1, 2), repeats=2, device="cpu"))
    rows = json.loads(json.dumps(result))["rows"]
    passes, forms = ("forward", "forward and backward"), ("masked", "grouped", "single scale")
    names = [(batch, name, form) for batch in (1, 2) for name in passes for form in forms]
    assert [(row["batch"], row["pass"], row["form"]) for row in rows] == names
    for row in rows:
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_s"])
        masked = next(r for r in rows if (r["batch"], r["pass"], r["form"]) == (row["batch"], row["pass"], "masked"))
        assert row["times_faster_than_masked"] == pytest.approx(masked["median_s"] / row["median_s"])
        assert (row["difference"] is None) == (row["form"] == "single scale")
        assert row["difference"] is None or row["difference"] < 1e-5
    printed = capsys.readouterr().out
    assert "hieratok-tiny" in printed
    assert "grouped" in printed


def test_errors() -> None:
    with pytest.raises(ValueError, match="repeats is 0, expected at least 1"):
        HieraTokSettings(repeats=0)
    with pytest.raises(ValueError, match=r"batches is \(\), expected at least one"):
        HieraTokSettings(batches=())
    with pytest.raises(ValueError, match="preset 'flow-tiny' is a FlowTransformer, expected a HieraTok"):
        run(HieraTokSettings(preset="flow-tiny"))
