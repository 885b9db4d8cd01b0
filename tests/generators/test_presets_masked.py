from __future__ import annotations

import pytest
from accelerate import init_empty_weights

from hiergen.generators.masked import MaskedAR
from hiergen.generators.presets_masked import PRESETS


@pytest.mark.parametrize(
    ("name", "millions", "tensors", "head_millions"),
    [("mar-b", 207.9, 364, 35.7), ("mar-l", 478.3, 476, 72.2), ("mar-h", 942.4, 604, 151.2)],
)
def test_published_sizes(name: str, millions: float, tensors: int, head_millions: float) -> None:
    with init_empty_weights(include_buffers=False):
        model = MaskedAR(**PRESETS[name].config)
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert sum(p.numel() for p in model.head.parameters()) / 1e6 == pytest.approx(head_millions, abs=0.06)


def test_shape_stage_as_released() -> None:
    config = {
        **PRESETS["mar-l"].config,
        "level_specs": [{"num_tokens": 256, "grid": None, "dim": 64, "vocab_size": None}],
        "num_classes": None,
        "feature_shapes": [[257, 1024]],
        "head_dim": 1024,
        "head_depth": 6,
    }
    with init_empty_weights(include_buffers=False):
        model = MaskedAR(**config)
    assert len(model.state_dict()) == 459
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(441.9, abs=0.06)


def test_the_tiny_preset_is_tiny() -> None:
    model = MaskedAR(**PRESETS["mar-tiny"].config)
    assert sum(p.numel() for p in model.parameters()) < 5e6
