"""An extractor that costs nothing and is computed by hand in a line: the mean of each channel."""

from __future__ import annotations

import pytest
import torch

from hiergen.evaluation.features.extractors import EXTRACTORS, Extractor, register_extractor
from hiergen.evaluation.settings import ExtractorConfig
from hiergen.metrics.fidelity import Features


def _mean_color(config: ExtractorConfig, device: torch.device) -> Extractor:
    def features(images: torch.Tensor) -> Features:
        return {"pool": images.float().mean(dim=(2, 3))}

    return Extractor("mean-color", "mean of each channel, not resized", features, "FD-mean-color", 3, "mean-color-1")


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    if "mean-color" not in EXTRACTORS:
        register_extractor("mean-color", _mean_color)
