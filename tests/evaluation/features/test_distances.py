"""Names of distances, and the rules of their intervals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hiergen.evaluation.features.distances import (
    SET_METRICS,
    DistanceConfig,
    SetMetric,
    interval_rule,
    kernel_name,
    measure,
    score_name,
    shown_name,
)
from hiergen.evaluation.features.extractors import Extractor
from hiergen.evaluation.features.references import Reference
from hiergen.evaluation.report import publish
from hiergen.metrics.frechet import Moments


def test_names_of_what_is_not_on_inceptions_features() -> None:
    names = {name: (kernel_name(name), score_name(name)) for name in ("FID", "FID-768", "FD-digits-cnn", "mine")}
    assert names == {
        "FID": ("KID", "IS"),
        "FID-768": ("KID-768", "IS-768"),
        "FD-digits-cnn": ("KD-digits-cnn", "IS-digits-cnn"),
        "mine": ("KD-mine", "IS-mine"),
    }
    rules = {name: interval_rule(name) for name in ("KID", "rKD-x", "IS-x", "psnr")}
    assert rules["KID"] is not None
    assert rules["KID"].endswith("blocks of both sets")
    assert rules["rKD-x"] is not None
    assert rules["rKD-x"].endswith("blocks of pairs")
    assert rules["psnr"] is None


def test_metrics_of_features_with_plain_names_say_whose_features() -> None:
    names = {
        name: shown_name(name, "digits") for name in ("precision", "recall", "agreement", "gFD-digits-cnn", "psnr")
    }
    assert names == {
        "precision": "precision (digits features)",
        "recall": "recall (digits features)",
        "agreement": "agreement (digits classifier)",
        "gFD-digits-cnn": "gFD-digits-cnn",
        "psnr": "psnr",
    }
    assert shown_name("precision", "none") == shown_name("precision", None) == "precision"


def test_one_entry_brings_a_metric_of_two_sets_into_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(pool, real, config):
        return {"spread": (float(pool.std() / real.std()), 0.25), "bare": (float(config.neighborhood), None)}

    monkeypatch.setattr(
        "hiergen.evaluation.features.distances.SET_METRICS",
        [*SET_METRICS, SetMetric({"spread": "a guess", "bare": ""}, spread)],
    )
    real = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    extractor = Extractor("mine", "", lambda x: x, "FD-mine", 3, "1")
    found = measure({"pool": 2 * real}, Reference(Moments.of(real), None, real, {}), extractor, DistanceConfig())
    assert found.metrics["spread"] == pytest.approx(2)
    assert (found.half_widths["spread"], found.metrics["bare"]) == (0.25, 3.0)
    assert "bare" not in found.half_widths
    report = {
        "kind": "gfid",
        "what": "a test",
        "metrics": found.metrics,
        "intervals_95": found.half_widths,
        "extractor": {"name": "mine", "description": ""},
        "settings": {"distances": {"resamples": 10}},
        "environment": {},
        "wall_time_s": 1,
    }
    publish(tmp_path, report)
    text = (tmp_path / "report.md").read_text()
    assert "| spread (mine features) | 2 | ± 0.25 |" in text
    assert "| bare (mine features) | 3 |  |" in text
    assert "of spread (mine features): a guess" in text
