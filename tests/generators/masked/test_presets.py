from __future__ import annotations

import pytest
from accelerate import init_empty_weights

from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.masked.presets import PRESETS
from hiergen.registry import create


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


def test_shape_stages_have_the_released_size() -> None:
    with init_empty_weights(include_buffers=False):
        released = MaskedAR(**PRESETS["mar3d-lr"].config)
        cascade = MaskedCascade(**PRESETS["mar3d"].config)
    assert len(released.state_dict()) == 459
    assert sum(p.numel() for p in released.parameters()) / 1e6 == pytest.approx(441.9, abs=0.06)
    # The fine stage has the coarse one's shapes, but for 256 more rows of the prefix and 768 more tokens.
    low, high = (stage.state_dict() for stage in (cascade.low, cascade.high))
    differing = {name for name, value in low.items() if high[name].shape != value.shape}
    assert differing == {f"transformer.{name}_positions" for name in ("encoder", "decoder", "query")}
    for name in ("transformer.encoder_positions", "transformer.decoder_positions"):
        assert high[name].shape[1] - low[name].shape[1] == 256 + 768


def test_the_tiny_presets_are_tiny() -> None:
    with init_empty_weights(include_buffers=False):
        image, shape = MaskedAR(**PRESETS["mar-tiny"].config), MaskedCascade(**PRESETS["mar3d-tiny"].config)
    assert sum(p.numel() for p in image.parameters()) < 5e6
    assert sum(p.numel() for p in shape.parameters()) < 10e6


def test_presets_fit_their_tokenizers() -> None:
    for tokenizer, generator in (("hieratok-tiny", "mar-tiny"), ("hieratok-tiny-levels", "mar-tiny-levels")):
        with init_empty_weights(include_buffers=False):
            create(generator).check_tokenizer(create(tokenizer).specs)
