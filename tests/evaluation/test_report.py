"""Reports: what is not finite, lines that end below zero, and bootstrap intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiergen.__main__ import main
from hiergen.evaluation.comparison import intervals
from hiergen.evaluation.report import publish, render


def test_a_metric_that_is_not_finite_has_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The PSNR of equal images is infinite, which JSON cannot hold: null in the report, and no comparison."""
    for name, values in (("first", torch.linspace(10, 12, 20)), ("second", torch.full((20,), torch.inf))):
        (tmp_path / name).mkdir()
        report = {
            "kind": "rfid",
            "what": "a test",
            "metrics": {"psnr": float(values.mean()), "ssim": 1.0, "absent": 0.5},
            "intervals_95": {"absent": 0.1},
            "settings": {"distances": {"resamples": 10}},
            "seed": 0,
            "environment": {},
            "wall_time_s": 1,
        }
        rows = {"psnr": values, "ssim": torch.full((20,), torch.nan)}
        publish(tmp_path / name, report, values=rows)
    text = (tmp_path / "second" / "report.md").read_text()
    assert "| psnr | not finite dB |  |" in text
    target = tmp_path / "result.json"
    assert (
        main(["evaluate", "compare", *(str(tmp_path / name) for name in ("first", "second")), "--out", str(target)])
        == 0
    )
    rows = json.loads(target.read_text())["metrics"]
    assert rows["psnr"] == {
        "first": pytest.approx(11),
        "second": None,
        "difference": None,
        "half_width": None,
        "is_clear": False,
        "interval": "resampled",
    }
    # No value of any item is known: no interval, whatever the report says.
    assert rows["ssim"]["difference"] is None
    assert rows["absent"]["half_width"] == pytest.approx(0.1 * 2**0.5)
    assert "not finite" in capsys.readouterr().out


def test_a_straight_line_that_ends_below_zero_is_not_told() -> None:
    report = {
        "kind": "gfid",
        "what": "a test",
        "metrics": {},
        "environment": {},
        "wall_time_s": 1,
        "warnings": ["a", "b"],
    }
    for last, told in ((5.0, "| infinitely many (straight line in 1 / count) | 2.5 |"), (1.0, "these are too few for")):
        bias = [{"count": 10, "distance": 7.5}, {"count": 20, "distance": last}]
        text = render({**report, "bias": bias})
        assert told in text
    assert "> **Note**: a.\n\n> **Note**: b.\n" in text


def test_intervals_cover_what_they_should() -> None:
    """The half-width of a mean is 1.96 standard errors."""
    values = {"psnr": torch.randn(400, generator=torch.Generator().manual_seed(0))}
    half = intervals(values, None, "", resamples=400, seed=0)["psnr"]
    assert half == pytest.approx(1.96 * float(values["psnr"].std()) / 20, rel=0.12)
