"""Studies: estimates against values of printed tables, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hiergen.evaluation.study import Estimate, Study, StudySettings, run_study


def test_an_estimate_is_students_interval() -> None:
    # 1, 2, 3: mean 2, deviation 1; t(0.975, 2) = 4.302653 from printed tables.
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert estimate.mean == 2
    assert estimate.count == 3
    assert estimate.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert estimate.text(2) == "2.00 ± 2.48"
    assert Estimate.of([1.5]).text(1, signed=True) == "+1.5"
    assert math.isnan(Estimate.of([1.5]).half_width)
    with pytest.raises(ValueError, match="values is empty"):
        Estimate.of([])


def variants(calls: list[str], shift: float = 1.0):
    def make(name: str, offset: float):
        def run(seed: int, folder: Path) -> dict[str, float]:
            assert folder.is_dir()
            assert folder.name == f"seed-{seed}"
            calls.append(f"{name}{seed}")
            return {"psnr": 10.0 * seed + offset}

        return run

    return {"base": make("base", 0.0), "other": make("other", shift)}


def test_differences_are_paired_by_seed(tmp_path) -> None:
    result = run_study(variants([]), seeds=(1, 2, 5), out=tmp_path, settings={"budget": 3})
    assert result.baseline == "base"
    assert result.estimate("base", "psnr").half_width > 30
    difference = result.difference("other", "psnr")
    assert difference.mean == pytest.approx(1)
    assert difference.half_width == pytest.approx(0, abs=1e-12)
    assert result.table({"psnr": "PSNR (dB)"}, digits=1).splitlines()[2:] == [
        "| base | 26.7 ± 51.7 |  |",
        "| other | 27.7 ± 51.7 | +1.0 ± 0.0 |",
    ]
    stored = json.loads((tmp_path / "study.json").read_text())
    assert stored["values"]["other"]["5"] == result.values["other"][5]
    assert stored["settings"] == {"budget": 3}


def test_a_study_runs_whole_seeds_and_only_what_is_new(tmp_path) -> None:
    calls: list[str] = []
    run_study(variants(calls), seeds=(0, 1), out=tmp_path, settings={})
    assert calls == ["base0", "other0", "base1", "other1"]
    run_study(variants(calls), seeds=(0, 1, 2), out=tmp_path, settings={})
    assert calls[4:] == ["base2", "other2"]


def test_a_stopped_study_continues(tmp_path) -> None:
    def stop(seed: int, folder: Path) -> dict[str, float]:
        raise KeyboardInterrupt

    calls: list[str] = []
    whole = variants(calls)
    with pytest.raises(KeyboardInterrupt):
        run_study({**whole, "other": stop}, seeds=(0,), out=tmp_path, settings={})
    assert not (tmp_path / "study.json").exists()
    run_study(whole, seeds=(0,), out=tmp_path, settings={})
    assert calls == ["base0", "other0"]


def test_results_of_other_settings_are_refused(tmp_path) -> None:
    run_study(variants([]), seeds=(0,), out=tmp_path, settings={"budget": 3, "other": {"levels": 2}})
    calls: list[str] = []
    with pytest.raises(ValueError, match=r"base/seed-0/result.json' is a result of other settings"):
        run_study(variants(calls), seeds=(0,), out=tmp_path, settings={"budget": 4, "other": {"levels": 2}})
    # Only the changed variant is stale.
    with pytest.raises(ValueError, match=r"other/seed-0/result.json' is a result of other settings"):
        run_study(variants(calls), seeds=(0,), out=tmp_path, settings={"budget": 3, "other": {"levels": 3}})
    assert calls == []


@pytest.mark.parametrize(
    ("names", "seeds", "message"),
    [
        ((), (0,), "expected at least one"),
        (("a",), (), "expected at least one"),
        (("a",), (1, 1), "all different"),
        (("a/b",), (0,), "variant is named 'a/b', expected a name that serves as a folder"),
    ],
)
def test_bad_tables_are_refused(tmp_path, names, seeds, message) -> None:
    with pytest.raises(ValueError, match=message):
        run_study({name: lambda seed, folder: {"x": 1.0} for name in names}, seeds=seeds, out=tmp_path, settings={})


@pytest.mark.parametrize(("metrics", "message"), [({}, "measured nothing"), ({"x": math.nan}, "measured {'x': nan}")])
def test_a_run_must_measure_something_finite(tmp_path, metrics, message) -> None:
    with pytest.raises(ValueError, match=f"variant 'a', seed 3, {message}"):
        run_study({"a": lambda seed, folder: metrics}, seeds=(3,), out=tmp_path, settings={})
    assert not (tmp_path / "a" / "seed-3" / "result.json").exists()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(StudySettings):
    seeds: tuple[int, ...] = (0,)
    samples: int = 5
    color: str = "red"


class Colors(Study[Settings]):
    FREE = ("out", "seeds", "color")


def test_parts_of_a_study_know_their_variants_and_what_makes_them_stale(tmp_path: Path) -> None:
    calls: list[tuple[str, int, str]] = []

    def run(name: str, seed: int, folder: Path) -> dict[str, float]:
        calls.append((name, seed, folder.relative_to(tmp_path).as_posix()))
        return {"length": len(name) + seed}

    def study(**changes: Any) -> Colors:
        return Colors(dataclasses.replace(Settings(out=str(tmp_path)), **changes))

    result = study().run("painting", run, ("a", "bcd"), {"bcd": {"width": 3}})
    assert result.values == {"a": {0: {"length": 1.0}}, "bcd": {0: {"length": 3.0}}}
    assert result.settings == {"samples": 5, "bcd": {"width": 3}}
    assert calls == [("a", 0, "painting/a/seed-0"), ("bcd", 0, "painting/bcd/seed-0")]
    # What is free changes nothing that was run; the budget makes it stale, and so does a variant's own change.
    study(color="blue", seeds=(0, 1)).run("painting", run, ("a", "bcd"), {"bcd": {"width": 3}})
    assert calls[2:] == [("a", 1, "painting/a/seed-1"), ("bcd", 1, "painting/bcd/seed-1")]
    with pytest.raises(ValueError, match="is a result of other settings"):
        study(samples=6).run("painting", run, ("a",))
    with pytest.raises(ValueError, match="is a result of other settings"):
        study().run("painting", run, ("bcd",), {"bcd": {"width": 4}})
