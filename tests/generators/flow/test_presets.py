from __future__ import annotations

import pytest
import torch

from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "millions"),
    # Published totals; for those of SiT the paper rounds to whole millions.
    [
        ("lightningdit-b", 130.36),
        ("lightningdit-l", 457.9),
        ("lightningdit-xl", 674.96),
        ("sit-b", 130),
        ("sit-xl", 675),
    ],
)
def test_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = FlowTransformer(**PRESETS[name].config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=4e-3)


def test_every_preset_builds() -> None:
    with torch.device("meta"):
        for preset in PRESETS.values():
            assert FlowTransformer(**preset.config).specs[0].num_tokens in (16, 128, 144, 256, 1024, 4096)
