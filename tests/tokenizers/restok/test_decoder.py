from __future__ import annotations

import pytest
import torch

from hiergen.registry import create
from hiergen.tokenizers.restok.decoder import LevelLinear


def test_each_level_has_its_own_layer() -> None:
    layer, tokens = LevelLinear((1, 1, 2), 3, 5, shared=False), torch.randn(2, 4, 3)
    for token, index in enumerate((0, 1, 2, 2)):
        wanted = tokens[:, token] @ layer.levels[index].weight.T + layer.levels[index].bias
        torch.testing.assert_close(layer(tokens)[:, token], wanted)


def test_shared_levels_have_one_layer() -> None:
    layer, tokens = LevelLinear((1, 1, 2), 3, 5, shared=True), torch.randn(2, 4, 3)
    assert len(layer.levels) == 1
    torch.testing.assert_close(layer(tokens), tokens @ layer.levels[0].weight.T + layer.levels[0].bias)


def test_features_need_a_model_that_was_built_for_them() -> None:
    decoder = create("restok-tiny", decoder_depth=1, encoder_depth=2).decoder
    with pytest.raises(ValueError, match="with_features needs a model with decoder_features=True"):
        decoder(torch.randn(1, 16, 8), with_features=True)


def test_codes_that_are_not_present_are_never_read() -> None:
    decoder = create("restok-tiny", decoder_depth=1, encoder_depth=2).decoder
    codes, present = torch.randn(2, 16, 8), torch.zeros(2, 16, dtype=torch.bool)
    present[0, :4] = True
    poisoned = torch.where(present[..., None], codes, torch.full_like(codes, torch.nan))
    assert torch.equal(decoder(poisoned, present)[0], decoder(codes, present)[0])
    assert not torch.equal(decoder(codes, present)[0], decoder(codes)[0])
