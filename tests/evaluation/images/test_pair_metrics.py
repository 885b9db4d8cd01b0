"""Metrics of pairs are a table: one entry brings a metric into every part of a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hiergen.evaluation.comparison import compare
from hiergen.evaluation.images import rate_distortion
from hiergen.evaluation.images.pair_metrics import PAIR_METRICS, PairMetric, measure_pairs
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.settings import DistanceConfig, ExtractorConfig, PassConfig, RfidSettings
from hiergen.metrics.pixel import psnr
from hiergen.pretrained.packaged import PACKAGED


def brightness(images: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return (images.mean(dim=(1, 2, 3)) - reference.mean(dim=(1, 2, 3))).abs()


def test_one_entry_is_in_the_report_with_intervals_rates_and_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(rate_distortion, "save_curves", lambda path, panels, **rest: drawn.extend(panels))
    settings = RfidSettings(
        tokenizer=str(PACKAGED / "digits-1d"),
        out=str(tmp_path / "plain"),
        num_images=12,
        prefixes=True,
        lpips="none",
        extractor=ExtractorConfig("mean-color"),
        distances=DistanceConfig(resamples=4),
        passes=PassConfig(device="cpu"),
    )
    evaluate_reconstructions(settings)
    monkeypatch.setitem(PAIR_METRICS, "brightness", PairMetric(brightness))
    # What was stored without it is not passed off as what has it.
    with pytest.raises(ValueError, match=r"holds the parts of another evaluation \(metrics differ\)"):
        evaluate_reconstructions(settings)
    drawn.clear()
    report = evaluate_reconstructions(RfidSettings(**{**vars(settings), "out": str(tmp_path / "out")}))
    assert report is not None
    assert report["metrics"]["brightness"] == report["rate_distortion"][-1]["metrics"]["brightness"] > 0
    assert report["intervals_95"]["brightness"] > 0
    assert "brightness" in report["rate_distortion"][0]["intervals_95"]
    assert drawn == ["rFD-mean-color", "psnr", "ssim", "brightness"]
    assert "| brightness | " in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["metrics"]["brightness"] > 0
    assert compare(tmp_path / "out", tmp_path / "out", resamples=2)["metrics"]["brightness"]["difference"] == 0


def test_small_images_have_no_metrics_of_large_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    for side, names in ((8, ["psnr"]), (11, ["psnr", "ssim"]), (176, ["psnr", "ssim", "ms_ssim"])):
        x, y = torch.randint(0, 256, (2, 2, 3, side, side), generator=rng, dtype=torch.uint8)
        found = measure_pairs(x, y, None)
        assert list(found) == names
        assert torch.equal(found["psnr"], psnr(x / 127.5 - 1, y / 127.5 - 1))
    assert measure_pairs(x, y, brightness)["lpips"].shape == (2,)
