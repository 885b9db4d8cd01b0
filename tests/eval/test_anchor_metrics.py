from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "anchor_metrics.py"


@pytest.fixture(scope="module")
def program() -> dict:
    return runpy.run_path(str(PROGRAM), run_name="anchor_metrics")


def test_our_metrics_are_those_of_others_and_fall_with_the_distortion(program, tmp_path: Path) -> None:
    waves = np.sin(np.arange(176)[:, None, None] / (3, 5, 9)) * np.cos(np.arange(180)[None, :, None] / (4, 7, 2))
    (tmp_path / "in").mkdir()
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(tmp_path / "in" / "a.png")
    settings = program["Settings"](images=str(tmp_path / "in"), out=str(tmp_path / "out"))
    report = program["measure"](settings)
    assert set(report["largest_difference"]) == {"psnr", "ssim", "ms_ssim"}
    assert all(gap < 1e-4 for gap in report["largest_difference"].values())
    rows = {row["distortion"]: row for row in report["rows"]}
    for names in (("JPEG, quality 95", "JPEG, quality 10"), ("blur, sigma 1", "blur, sigma 4")):
        for metric in ("psnr", "ssim", "ms_ssim"):
            assert rows[names[0]][metric] > rows[names[1]][metric]
    assert "| largest difference to others |" in (tmp_path / "out" / "anchor.md").read_text()


def test_pictures_that_ms_ssim_cannot_take_are_named(program, tmp_path: Path) -> None:
    Image.new("RGB", (200, 175)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"small.png' is smaller than 176 pixels"):
        program["measure"](program["Settings"](images=str(tmp_path), out=str(tmp_path / "out")))
