from __future__ import annotations

import json

import pytest
import torch

from hiergen.benchmarks.measuring.plain.restok import PlainResTok
from hiergen.benchmarks.restok import run
from hiergen.benchmarks.settings import ResTokSettings
from hiergen.registry import create


@pytest.mark.parametrize(
    "changes", [{}, {"projection": "reinterpreted", "merge": "even", "learnable_image_tokens": True}]
)
def test_the_baseline_computes_the_same(changes) -> None:
    model = create("restok-tiny", **changes).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    plain, pyramid = PlainResTok(model), model.encode(images)
    assert torch.equal(plain.encode(images).concat(), pyramid.concat())
    with torch.no_grad():
        torch.testing.assert_close(plain.decode(pyramid), model.decode(pyramid), atol=1e-5, rtol=1e-5)


def test_the_benchmark_reports_both_programs_in_both_directions() -> None:
    result = run(ResTokSettings(preset="restok-tiny", batches=(1, 2), repeats=1, device="cpu"))
    assert len(result["rows"]) == 8
    assert {(row["program"], row["direction"]) for row in result["rows"]} == {
        (program, direction) for program in ("hiergen", "plain") for direction in ("encode", "decode")
    }
    json.dumps(result, allow_nan=False)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats is 0"):
        ResTokSettings(repeats=0)
    with pytest.raises(ValueError, match=r"batches is \(0,\)"):
        ResTokSettings(batches=(0,))
    with pytest.raises(ValueError, match="is a LevelAR, expected a ResTok"):
        run(ResTokSettings(preset="har-tiny"))
