from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "plot_rates.py"


@pytest.fixture(scope="module")
def program() -> dict:
    return runpy.run_path(str(PROGRAM), run_name="plot_rates")


def _report(folder: Path, rates: dict[int, float], *, extractor: str = "digits", is_discrete: bool = False) -> str:
    folder.mkdir()
    rows = [
        {
            "unit": "levels",
            "count": k,
            "tokens": tokens,
            "bits": 9 * tokens if is_discrete else None,
            "numbers": None if is_discrete else 8 * tokens,
            "metrics": {"psnr": value},
        }
        for k, (tokens, value) in enumerate(rates.items(), start=1)
    ]
    report = {"kind": "rfid", "metrics": rows[-1]["metrics"], "rate_distortion": rows, "extractor": {"name": extractor}}
    (folder / "report.json").write_text(json.dumps({**report, "intervals_95": {"psnr": 0.25}}))
    save_file({"psnr": torch.zeros(3)}, folder / "values.safetensors")
    return str(folder)


def test_curves_and_points_of_several_tokenizers(program, tmp_path: Path) -> None:
    """A tokenizer with one rate is a point; what is everything has the interval of its report."""
    reports = (_report(tmp_path / "levels", {1: 12.0, 4: 16.0}), _report(tmp_path / "one", {16: 20.0}))
    picture = tmp_path / "out" / "rates.png"
    curves = program["plot"](program["Settings"](reports, out=str(picture)))
    assert picture.stat().st_size > 0
    assert {name: [row["tokens"] for row in rows] for name, rows in curves.items()} == {"levels": [1, 4], "one": [16]}
    assert [row.get("intervals_95", {}) for row in curves["levels"]] == [{}, {"psnr": 0.25}]
    named = program["plot"](program["Settings"](reports, names=("a", "b"), rate="numbers", out=str(picture)))
    assert list(named) == ["a", "b"]


def test_what_cannot_be_in_one_picture_is_refused(program, tmp_path: Path) -> None:
    first = _report(tmp_path / "first", {1: 12.0})
    other = _report(tmp_path / "other", {1: 12.0}, extractor="inception")
    for settings, message in (
        (program["Settings"]((first, other)), "they differ in extractor.name: 'digits' and 'inception'"),
        (program["Settings"]((first, first)), "expected one each, all different"),
        (
            program["Settings"]((_report(tmp_path / "ids", {1: 12.0}, is_discrete=True),), rate="numbers"),
            "report 'ids' has no numbers",
        ),
        (program["Settings"](()), "there are 0 reports"),
    ):
        with pytest.raises(ValueError, match=message):
            program["plot"](settings)
