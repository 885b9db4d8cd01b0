"""`hiergen bench all` with benchmarks that return known numbers, and the tables made of them."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

import hiergen.benchmarks.all as whole
from hiergen.benchmarks.measuring.ratios import Ratio, agreements_of, ratios_of
from hiergen.benchmarks.measuring.tables import MARKS, speed_tables, write_speed
from hiergen.benchmarks.settings import SETTINGS, AllSettings
from hiergen.cli.bench import BENCHMARKS
from hiergen.cli.bench import main as bench

BEGIN, END = (mark.format("all") for mark in MARKS)
OTHERS = {"all", "scaling"}
MACHINE = {
    "device": "x CPU", "threads": 1, "torch": "9", "flops_per_s": {"float32": 1e9, "bfloat16": 2e9}, "bytes_per_s": 1e9,
}  # fmt: skip
TIMED = {"median_s": 2.0, "flops": 1e9, "bytes": 1e3, "batch": 1}
HAR = {
    "settings": {"preset": "har-b", "dtype": "bfloat16"},
    "rows": [
        {**TIMED, "sampler": "cached", "times_faster_than_plain": 1.5, "times_faster_than_rebuilding": 2.5},
        {"median_s": 9.0, "batch": 1, "sampler": "plain", "equal_ids": 0.875},
    ],
}


def test_every_benchmark_has_sizes_and_its_settings_take_them() -> None:
    assert set(whole.QUICK) == set(whole.ON_CPU) == set(SETTINGS) - OTHERS == set(BENCHMARKS) - OTHERS
    for name, kind in SETTINGS.items():
        if name not in OTHERS:
            kind(**whole.QUICK[name])
            kind(**whole.ON_CPU[name])


def test_ratios_by_hand() -> None:
    assert ratios_of("har", HAR, MACHINE) == [
        Ratio("har", "har-b, batch 1", "plain", 1.5),
        Ratio("har", "har-b, batch 1", "plain, tables rebuilt", 2.5),
        Ratio("har", "har-b, batch 1", "bound", 0.25),
    ]
    row = {**TIMED, "layout": "var", "pass": "forward", "times_faster_than_sdpa": 3.0}
    rows = [{**row, "backend": "sdpa", "times_faster_than_sdpa": 1.0}, {**row, "backend": "grouped"}]
    assert ratios_of("attention", {"settings": {}, "rows": rows}, MACHINE) == [
        Ratio("attention", "var, forward, sdpa", "bound", 0.5),
        Ratio("attention", "var, forward, grouped", "sdpa", 3.0),
        Ratio("attention", "var, forward, grouped", "bound", 0.5),
    ]
    entries = {
        "pyramid, all in": {"ms": 2.0},
        "dense, flash": {"ms": 6.0},
        "dense, math": {"ms": 9.0},
        "dense, cuDNN": {"reason": "-"},
    }
    psa = {"settings": {"tokens": 9, "density": 0.1}, "attention": entries, "bound_ms": 1.0}
    assert [(x.against, x.value) for x in ratios_of("psa", psa, MACHINE)] == [("dense attention", 3.0), ("bound", 0.5)]
    quality = {
        "settings": {"densities": (0.2,)},
        "rows": [{"importance": "sampled"}, {"importance": "pyramid", "pyramid@0.2": 0.1, "binary@0.2": 0.4}],
    }
    assert ratios_of("psa-quality", quality, MACHINE) == [
        Ratio("psa-quality", "density 0.2", "block mask, by error", 4.0)
    ]
    training = {"settings": {"preset": "p", "batch": 4}, "mfu": 0.6, "times_faster_than_plain": 1.5}
    assert ratios_of("train-restok", training, MACHINE) == [
        Ratio("train-restok", "p, batch 4", "plain", 1.5),
        Ratio("train-restok", "p, batch 4", "bound", 0.6),
    ]
    with pytest.raises(ValueError, match="benchmark is 'chess', expected one of restok, "):
        ratios_of("chess", {}, MACHINE)


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("restok", {"program": "hiergen", "direction": "encode", "batch": 1, "agreement": 0.995}, "99.5% of the ids"),
        ("restok", {"program": "hiergen", "direction": "decode", "batch": 1, "agreement": 8.2e-5}, "up to 8e-05"),
        ("hieratok", {"form": "grouped", "pass": "forward", "batch": 1, "difference": 0.0}, "equal"),
        ("har", {"sampler": "plain", "batch": 1, "equal_ids": 1.0}, "all ids"),
        ("rar", {"sampler": "plain", "batch": 1, "equal_ids": 0.5}, "50.0% of the ids"),
        ("mar", {"sampler": "hiergen", "batch": 1, "relative_difference": 2e-6}, "up to 2e-06"),
        ("mesh", {"shape": "table", "nodes": 129, "is_equal": None}, "not compared"),
        ("attention", {"layout": "var", "pass": "forward", "backend": "flex", "difference": 1e-6}, "up to 1e-06"),
        ("psa", None, None),
    ],
)
def test_how_far_both_agree_stands_beside_a_ratio(name, row, said) -> None:
    """The ids of a sampler are those of the first one by definition: the plain one's row says how many are equal."""
    others = [] if row is None or "sampler" not in row else [{**row, "sampler": "another", "equal_ids": 1.0}]
    found = agreements_of(name, {"settings": {}, "rows": [*others, row]})
    assert list(found.values()) == ([] if said is None else [said])


@pytest.fixture
def stubs(monkeypatch) -> list[Any]:
    """Benchmarks that note their settings; "mar" lacks a package."""
    ran: list[Any] = []

    def stub(settings: Any) -> dict[str, Any]:
        ran.append(settings)
        return HAR

    def lacking(settings: Any) -> dict[str, Any]:
        raise ImportError("mar needs chess")

    monkeypatch.setattr(whole, "measure_machine", lambda device, **limits: MACHINE)
    monkeypatch.setattr(importlib.import_module("hiergen.benchmarks.generators.har"), "run", stub)
    monkeypatch.setattr(importlib.import_module("hiergen.benchmarks.generators.mar"), "run", lacking)
    return ran


def test_one_table_and_one_file(stubs, tmp_path, capsys) -> None:
    output = tmp_path / "speed.json"
    bench(["all", "--quick", "--only", "har", "mar", "--output", str(output), "--seed", "3", "--device", "cpu"])
    (settings,) = stubs
    assert (settings.preset, settings.batches, settings.seed, settings.device) == ("har-tiny", (1,), 3, "cpu")
    written = json.loads(output.read_text())
    assert written["ratios"][0] == {"benchmark": "har", "case": "har-b, batch 1", "against": "plain", "value": 1.5}
    assert written["results"] == {"har": HAR}
    assert written["left_out"] == {"mar": "mar needs chess"}
    printed = capsys.readouterr()
    # Whole, though what is no terminal counts as 80 columns wide.
    assert "\nhar\n  har-b, batch 1: plain 1.50; plain, tables rebuilt 2.50; bound 0.25\n" in printed.out
    assert "left out mar: mar needs chess" in printed.err
    assert printed.out.splitlines()[-1] == "next: hiergen bench"
    bench(["all", "--only", "har", "--quick", "False", "--output", str(output)])
    assert stubs[-1].preset == "har-b"


def test_unknown_names_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="only names 'chess', expected some of attention, restok, "):
        whole.run(AllSettings(only=("chess",), output=tmp_path / "speed.json"))


def test_a_toy_run_of_real_benchmarks(tmp_path) -> None:
    """The quickest two, so that the numbers which the ratios are made of are there."""
    found = whole.run(
        AllSettings(quick=True, only=("psa-quality", "har"), output=tmp_path / "speed.json", device="cpu")
    )
    assert {ratio["against"] for ratio in found["ratios"]} == {
        "block mask, by error", "plain", "plain, tables rebuilt", "bound",
    }  # fmt: skip
    assert all(ratio["value"] > 0 for ratio in found["ratios"])
    assert json.loads((tmp_path / "speed.json").read_text())["results"]["har"]["rows"][0]["flops"] > 0


def test_the_page_is_made_from_the_file(stubs, tmp_path) -> None:
    whole.run(AllSettings(quick=True, only=("har", "mar"), output=tmp_path / "speed.json", device="cpu"))
    result = json.loads((tmp_path / "speed.json").read_text())
    text = speed_tables(result)
    assert "Matrix products reach 1 GFLOP/s in float32, 2 GFLOP/s in bfloat16; copying moves 1.0 GB/s." in text
    assert "small sizes, single runs" in text
    assert (
        "### `hiergen bench har`\n\n| case | plain | plain, tables rebuilt | bound | agree |\n| --- | --- | --- | --- | --- |\n"
        "| har-b, batch 1 | 1.50 | 2.50 | 0.25 | 87.5% of the ids |\n" in text
    )
    assert "Not measured: `mar` (mar needs chess)." in text
    page = tmp_path / "speed.md"
    page.write_text(f"# Speed\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    for _ in range(2):
        write_speed(result, page)
        assert page.read_text() == f"# Speed\n\n{BEGIN}\n\n{text}\n\n{END}\n\nmore\n"
    page.write_text(f"{END}\n{BEGIN}\n")
    with pytest.raises(ValueError, match="does not hold '<!-- hiergen bench all: begin -->' and, behind it, "):
        write_speed(result, page)
