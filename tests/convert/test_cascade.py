from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hiergen.convert import masked as image_converter
from hiergen.convert.cascade import from_official
from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.generators.masked.model import MaskedAR
from hiergen.pyramid import LevelSpec

N, C, D, ROWS = 5, 4, 16, 3
HEADS = {"encoder_heads": 2, "decoder_heads": 2}


def _official() -> tuple[MaskedAR, dict[str, Tensor]]:
    """Return a model of the released kind and its tensors under their official names."""
    model = MaskedAR(
        level_specs=[{"num_tokens": N, "grid": None, "dim": C, "vocab_size": None}],
        num_classes=None,
        feature_shapes=[[ROWS, D]],
        encoder_dim=D,
        encoder_depth=2,
        encoder_heads=2,
        decoder_dim=D,
        decoder_depth=1,
        decoder_heads=2,
        norm_eps=1e-5,
        head_dim=12,
        head_depth=2,
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, {image_converter.official_name(name): value for name, value in model.state_dict().items()}


def test_names_are_the_released_ones() -> None:
    _, tensors = _official()
    assert tensors["fake_latent"].shape == (ROWS, D)
    assert tensors["encoder_pos_embed_learned"].shape == (1, ROWS + N, D)
    assert tensors["decoder_blocks.0.attn.qkv.weight"].shape == (3 * D, D)
    assert tensors["diffloss.net.res_blocks.1.adaLN_modulation.1.weight"].shape == (36, 12)
    assert tensors["diffloss.net.final_layer.adaLN_modulation.1.bias"].shape == (24,)
    assert "class_emb.weight" not in tensors


@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_released_layout_gives_the_coarse_stage(is_checkpoint: bool) -> None:
    model, tensors = _official()
    given = tensors
    if is_checkpoint:
        beside = {"condition.model.weight": torch.zeros(1), "shape_model.encoder.query": torch.zeros(2)}
        given = {"state_dict": {**{f"mar.{name}": value for name, value in tensors.items()}, **beside}, "epoch": 1}
    converted = from_official(given, HEADS)
    assert converted.specs == (LevelSpec(N, None, C),)
    assert converted.config["norm_eps"] == 1e-5
    assert converted.config["latent_multiplier"] == 1.0
    assert converted.config["feature_shapes"] == [[ROWS, D]]
    state = converted.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    tokens, features = torch.randn(2, N, C), torch.randn(2, ROWS, D)
    order = torch.randperm(N).expand(2, -1)
    # The features are the prefix themselves.
    torch.testing.assert_close(
        converted(tokens, order, 3, features), model(tokens, order, 3, model.prefix(features)), rtol=0, atol=0
    )


def test_a_cascade_can_be_built_around_it() -> None:
    _, tensors = _official()
    low = from_official({**tensors}, HEADS)
    with pytest.raises(ValueError, match="encoder_depth 2 and decoder_depth 1, expected the same"):
        MaskedCascade.from_low_stage(low, LevelSpec(7, None, C))
    tensors |= {name.replace("decoder_blocks.0", "decoder_blocks.1"): tensors[name] for name in list(tensors)}
    cascade = MaskedCascade.from_low_stage(from_official(tensors, HEADS), LevelSpec(7, None, C))
    assert cascade.specs == (LevelSpec(N, None, C), LevelSpec(7, None, C))


def test_errors_name_the_tensor() -> None:
    _, tensors = _official()
    with pytest.raises(ValueError, match=r"missing 'decoder_norm.bias'"):
        from_official({name: value for name, value in tensors.items() if name != "decoder_norm.bias"}, HEADS)
    with pytest.raises(ValueError, match="lacks tensor 'fake_latent'"):
        from_official({name: value for name, value in tensors.items() if name != "fake_latent"}, HEADS)
    with pytest.raises(ValueError, match=r"unexpected 'class_emb.weight'"):
        from_official({**tensors, "class_emb.weight": torch.zeros(5, D)}, HEADS)
    prefixed = {f"mar.{name}": value for name, value in tensors.items()}
    with pytest.raises(ValueError, match=r"unexpected tensor 'vae.weight'"):
        from_official({**prefixed, "vae.weight": torch.zeros(1)}, HEADS)
    with pytest.raises(ValueError, match="has 8 places, expected 4 of 'fake_latent' and 5 tokens"):
        from_official({**tensors, "fake_latent": torch.zeros(4, D)}, HEADS)
    with pytest.raises(ValueError, match="encoder width 16 is not a published one"):
        from_official(tensors)
