from __future__ import annotations

import pytest
import torch

from hiergen.benchmarks.evaluate import run
from hiergen.benchmarks.settings import EvaluateSettings
from hiergen.evaluation.features.extractors import EXTRACTORS, Extractor
from hiergen.evaluation.settings import ExtractorConfig

PARTS = {
    "rfid": ["evaluation", "models", "tokenizer", "extractor", "reading", "pixel metrics", "around the pass"],
    "samples": ["evaluation", "models", "extractor", "reading", "around the pass"],
}


def _means(config: ExtractorConfig, device: torch.device) -> Extractor:
    return Extractor("means", "", lambda images: {"pool": images.float().mean(dim=(2, 3))}, "FD-means", 3, "means")


@pytest.mark.parametrize("kind", ["rfid", "samples"])
def test_parts_are_measured_beside_the_whole(kind, capsys, monkeypatch) -> None:
    monkeypatch.setitem(EXTRACTORS, "means", _means)
    extractor = ExtractorConfig("means")
    result = run(EvaluateSettings(kind=kind, num_images=12, extractor=extractor, resamples=2, repeats=1, device="cpu"))
    rows = {row["part"]: row for row in result["rows"]}
    assert list(rows) == PARTS[kind]
    assert rows["evaluation"]["share_of_evaluation"] == 1
    assert rows["evaluation"]["images_per_s"] == pytest.approx(12 / rows["evaluation"]["median_s"])
    models = sum(rows[name]["median_s"] for name in ("tokenizer", "extractor") if name in rows)
    assert rows["models"]["median_s"] == pytest.approx(models)
    assert rows["models"]["share_of_evaluation"] == pytest.approx(models / rows["evaluation"]["median_s"])
    assert all(row["share_of_evaluation"] > 0 for row in rows.values())
    assert "extractor means" in capsys.readouterr().out


def test_refusals() -> None:
    with pytest.raises(ValueError, match="num_images is 9, expected at least 10"):
        EvaluateSettings(num_images=9)
    with pytest.raises(ValueError, match="preset 'har-tiny' is a LevelAR, expected an image tokenizer"):
        run(EvaluateSettings(preset="har-tiny", num_images=10))
