from __future__ import annotations

import json

import pytest

from hiergen.benchmarks import attention
from hiergen.benchmarks.settings import AttentionSettings
from hiergen.registry import get_preset
from hiergen.tokenizers.hieratok.config import HieraTokConfig

TOY = {"tokens": 20, "heads": 2, "dim": 8, "repeats": 1, "device": "cpu"}


def test_every_backend_that_runs_is_timed_and_gives_the_formulas_numbers(capsys) -> None:
    result = json.loads(json.dumps(attention.run(AttentionSettings(layouts=("dense", "har"), **TOY))))
    found = [(row["layout"], row["pass"], row["backend"]) for row in result["rows"]]
    both, forward = ("forward", "forward and backward"), ("sdpa", "reference", "flex")
    assert [x for x in found if x[0] == "dense" and x[1] == both[0]] == [("dense", both[0], name) for name in forward]
    har = ("sdpa", "reference", "grouped")
    assert [x for x in found if x[0] == "har" and x[1] == both[1]] == [("har", both[1], name) for name in har]
    assert ("har", "forward", "flex") in found
    for row in result["rows"]:
        assert row["difference"] < 3e-6
        assert row["times_faster_than_sdpa"] > 0
    # Products of groups: queries by the keys that they see, twice for scores and values; two operations each, 2 heads of 8 channels.
    seen = sum(size * end for size, end in zip((1, 1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64, 128), strict=True))
    rows = [row for row in result["rows"] if row["layout"] == "har" and row["pass"] == "forward"]
    assert {row["flops"] for row in rows} == {4 * 2 * 8 * seen}
    assert "FlexAttention has no gradient on a CPU" in result["refused"]["har, forward and backward, flex"]
    assert "there are no groups" in result["refused"]["dense, forward, grouped"]
    printed = capsys.readouterr().out
    assert "dense, forward, hub: backend 'hub' of attention cannot run" in printed


def test_layouts_are_those_of_the_presets() -> None:
    for name, preset in (("har", "har-b"), ("var", "var-d16")):
        specs = get_preset(preset).config["level_specs"]
        assert tuple(spec["num_tokens"] for spec in specs) == attention.GROUPS[name]
    assert tuple(side**2 for side in HieraTokConfig().scales) == attention.GROUPS["hieratok"]


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="layouts and backends hold nothing to measure"):
        AttentionSettings(layouts=())
    with pytest.raises(ValueError, match="heads is 0, expected at least 1"):
        AttentionSettings(heads=0)
