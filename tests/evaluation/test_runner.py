"""The order in which an evaluation runs, what its report holds, and settings that exclude each other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.config import to_json
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.runner import Evaluation, Findings, Work, run_evaluation, tell
from hiergen.evaluation.settings import EvaluationSettings, GeneratorSettings, PassConfig, check_one_given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EvaluationSettings):
    model: str = "a"
    data: str = "b"
    has_work: bool = True
    distances: dict[str, int] = dataclasses.field(default_factory=lambda: {"resamples": 0})


class Numbers(Evaluation[Settings]):
    kind = "numbers"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.steps: list[str] = []

    def check(self) -> None:
        self.steps.append("check")

    def open_models(self) -> dict[str, Any]:
        self.steps.append("models")
        return {"model": self.settings.model}

    def open_data(self) -> dict[str, Any]:
        self.steps.append("data")
        return {"data": self.settings.data}

    def prepare(self) -> Work | None:
        self.steps.append("prepare")
        return (
            Work(5, lambda keys, _: {"x": torch.tensor(list(keys)).float()}, "count")
            if self.settings.has_work
            else None
        )

    def summarize(self, parts: Parts | None) -> Findings:
        self.steps.append("summarize")
        values = None if parts is None else {"x": parts.read("x")}
        return Findings(
            what="numbers",
            metrics={"mean": float("inf") if values is None else float(values["x"].mean())},
            protocol={"rule": "count"},
            extractor={"name": "none"},
            reference={},
            counts={"numbers": 5},
            seed=7,
            warnings=["few"],
            more={"items": "0"},
            values=values,
        )


def _settings(folder: Path, **changes: Any) -> Settings:
    return Settings(out=str(folder), passes=PassConfig(batch_size=2, part_size=2, device="cpu"), **changes)


def test_an_evaluation_runs_its_steps_in_order_and_reports_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    numbers = Numbers(_settings(tmp_path))
    report = run_evaluation(numbers)
    assert numbers.steps == ["check", "models", "data", "prepare", "summarize"]
    assert report is not None
    assert report["metrics"] == {"mean": 2.0}
    assert (report["kind"], report["seed"], report["warnings"], report["items"]) == ("numbers", 7, ["few"], "0")
    assert report["settings"] == to_json(numbers.settings)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    identity = json.loads((tmp_path / "parts" / "identity.json").read_text())["of"]
    assert identity == {"kind": "numbers", "model": "a", "data": "b", "num_items": 5, "part_size": 2}
    tell(report)
    printed = capsys.readouterr()
    follows = f"next: hiergen evaluate compare {tmp_path} OTHER"
    assert printed.out == f"mean 2\nreport: {tmp_path / 'report.md'}\n{follows}\n"
    assert printed.err.startswith(f"evaluate numbers: 5 items on cpu -> {tmp_path}\n")


def test_a_folder_of_another_evaluation_is_refused_as_soon_as_that_shows(tmp_path: Path) -> None:
    run_evaluation(Numbers(_settings(tmp_path)))
    for changes, steps in (({"model": "c"}, ["check", "models"]), ({"data": "c"}, ["check", "models", "data"])):
        other = Numbers(_settings(tmp_path, **changes))
        with pytest.raises(
            ValueError, match=rf"holds the parts of another evaluation \({next(iter(changes))} differ\)"
        ):
            run_evaluation(other)
        assert other.steps == steps


def test_an_evaluation_without_items_has_a_report_and_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = run_evaluation(Numbers(_settings(tmp_path, has_work=False)))
    assert report is not None
    assert not (tmp_path / "parts").exists()
    # JSON holds no infinity.
    assert report["metrics"] == {"mean": None}
    tell(report)
    tell(None)
    assert capsys.readouterr().out.startswith("mean not finite\nreport: ")


def test_one_of_several_sources_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"got none of --pipeline and --seed, expected one"):
        check_one_given(GeneratorSettings(), "pipeline", "seed")
    with pytest.raises(ValueError, match=r"got pipeline and seed of --pipeline and --seed, expected one"):
        check_one_given(GeneratorSettings(pipeline="a", seed=1), "pipeline", "seed")
    check_one_given(GeneratorSettings(pipeline="a"), "pipeline", "seed")
