"""Names, shapes and errors of the converter; its numbers are in `test_restok_numbers.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert.restok import from_official, to_official
from hiergen.convert.restok_config import read_config
from hiergen.registry import create
from hiergen.tokenizers.restok.model import ResTok

SIZES: dict[str, Any] = {
    "image_size": 8,
    "cnn_channels": 8,
    "cnn_groups": 8,
    "cnn_multipliers": [1, 2],
    "cnn_blocks": 1,
    "cnn_mid_blocks": 1,
    "z_channels": 4,
    "encoder_dim": 8,
    "encoder_depth": 2,
    "encoder_heads": 1,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "num_latent_tokens": 8,
    "min_tokens": 2,
    "code_dim": 4,
    "vocab_size": 16,
    "num_image_levels": 2,
}
YAML: dict[str, Any] = {"model": {"vq_model": {"num_min_tokens": 2}}, "dataset": {"preprocessing": {"crop_size": 8}}}


def official(**overrides: Any) -> dict[str, Tensor]:
    return to_official(ResTok(**{**SIZES, **overrides}))


def test_published_layout_has_the_published_names_and_size() -> None:
    with torch.device("meta"):
        state = to_official(create("restok-l-128"))
    assert len(state) == 1146
    assert sum(tensor.numel() for tensor in state.values()) == 659_693_771
    wanted = {
        "encoder.patch_embed.weight": (1024, 256, 1, 1),
        "encoder.level_embedding.3": (1, 1024),
        "decoder.latent_token_level_embedding.7": (1, 1024),
        "encoder.conv_out.7.weight": (8, 1024, 1, 1),
        "encoder.blocks.23.attn.q_norm.weight": (64,),
        "decoder.decoder_embed.0.weight": (1024, 8),
        "decoder.latent_mask_token": (1, 1, 8),
        "decoder.mask_token": (1, 1, 1024),
        "decoder.ffn.weight": (256, 1024, 1, 1),
        "quantize.embedding.weight": (8192, 8),
        "pixel_encoder.down.4.block.0.nin_shortcut.weight": (512, 512, 1, 1),
        "pixel_decoder.up.1.upsample_conv.weight": (128, 128, 3, 3),
        "pixel_decoder.up.3.block.0.nin_shortcut.weight": (256, 256, 1, 1),
    }
    assert {name: tuple(state[name].shape) for name in wanted} == wanted


@pytest.mark.parametrize(
    "overrides",
    [{}, {"cnn_encoder": False, "multi_projection": False, "num_image_levels": 1}, {"learnable_image_tokens": False}],
)
def test_round_trip_keeps_every_bit(overrides: dict[str, Any]) -> None:
    model = ResTok(**{**SIZES, **overrides})
    yaml = {**YAML, "learnable_dec_image_tokens": model.config.learnable_image_tokens}
    state = {name: tensor.clone() for name, tensor in to_official(model).items()}
    again = from_official(to_official(model), yaml)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }
    assert not again.training
    result = to_official(again)
    assert result.keys() == state.keys()
    assert all(torch.equal(result[name], state[name]) for name in state)
    # The model has its own memory: changing it leaves the caller's tensors alone.
    for parameter in again.parameters():
        parameter.data.add_(1)
    untouched = to_official(model)
    assert all(torch.equal(untouched[name], state[name]) for name in state)


def test_prefixes_and_training_tensors_are_dropped() -> None:
    state = official(decoder_features=True)
    wrapped = {f"module._orig_mod.{name}": tensor.half() for name, tensor in state.items()}
    extra = ("foundation_model.model.norm.weight", "vf_proj.weight", "vf_proj_dec.weight", "discriminator.heads.0.bias")
    wrapped |= {f"module._orig_mod.{name}": torch.ones(1) for name in extra}
    model = from_official(wrapped, YAML)
    assert not model.config.decoder_features
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    supervised = from_official(wrapped, {**YAML, "decoder_feature_supervision": True})
    assert torch.equal(supervised.decoder.feature_mask_token, state["decoder.feat_mask_token"][0, 0].half().float())


def test_image_size_comes_from_the_argument_then_the_configuration_then_the_default() -> None:
    # At 256 pixels this model would have 128x128 image tokens: only the configuration is made.
    assert read_config(official(), {}, None)["image_size"] == 256
    assert from_official(official(), YAML).config.image_size == 8
    assert from_official(official(), YAML, image_size=16).config.image_size == 16


def test_switched_off_merging_ignores_further_level_embeddings() -> None:
    yaml = {**YAML, "merge_tokens": False}
    assert from_official(official(), yaml).config.num_image_levels == 1
    without = {name: tensor for name, tensor in official().items() if "encoder.level_embedding" not in name}
    assert from_official(without, yaml).encoder.level_embedding.abs().sum() == 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("decoder.ffn.bias", None, "lacks tensor 'decoder.ffn.bias'"),
        ("encoder.blocks.0.attn.q_bias", None, "lacks tensor 'encoder.blocks.0.attn.q_bias'"),
        ("quantize.embedding.weight", None, "lacks tensor 'quantize.embedding.weight'"),
        ("decoder.mask_token", None, "lacks tensor 'decoder.mask_token'"),
        ("encoder.level_embedding.0", None, "lacks tensor 'encoder.level_embedding.0'"),
        (
            "quantize.embedding.weight",
            (16, 4, 1),
            r"'quantize.embedding.weight' has shape \(16, 4, 1\), expected 2 dim",
        ),
        ("decoder.ffn.bias", (5,), r"'decoder.ffn.bias' has shape \(5,\), expected \(4,\)"),
        (
            "encoder.blocks.0.attn.q_norm.weight",
            (3,),
            "'encoder.blocks.0.attn.q_norm.weight' has 3 channels, expected a div",
        ),
        ("pixel_decoder.up.1.block.0.conv2.weight", (9, 9, 3, 3), "has 9 channels, expected a multiple of 8"),
        ("encoder.surprise", (1,), "holds 1 tensors that ResTok has not: encoder.surprise"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(name: str, change: tuple[int, ...] | None, message: str) -> None:
    state = official()
    if change is None:
        del state[name]
    else:
        state[name] = torch.zeros(change)
    with pytest.raises(ValueError, match=message):
        from_official(state, YAML)


def test_missing_lists_are_named() -> None:
    state = {name: tensor for name, tensor in official().items() if ".blocks." not in name or "encoder" in name}
    with pytest.raises(ValueError, match=r"lacks tensor 'decoder.blocks.0.attn.q_norm.weight'"):
        from_official(state, YAML)
    with pytest.raises(ValueError, match=r"lacks tensors 'encoder.latent_token_level_embedding.0' and following"):
        from_official({"quantize.embedding.weight": torch.zeros(2, 2)}, {"learnable_dec_image_tokens": False})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("codebook_size", 99, "codebook_size is 99 in the configuration, but 'quantize.embedding.weight' says 16"),
        ("hierarchy_stages", 4, "hierarchy_stages is 4 in the configuration, but .* says 2"),
        ("vae_encoder", False, "vae_encoder is False in the configuration, but 'pixel_encoder.\\*' says True"),
        ("reduction_ratio", 0.25, "reduction_ratio is 0.25 in the configuration, only 0.5 is supported"),
        ("use_l2_norm", False, "use_l2_norm is False in the configuration, only True is supported"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_official(official(), {**YAML, "vq_model": {key: value}})


@pytest.mark.parametrize(
    ("key", "value"), [("projection", "per_token"), ("merge", "average"), ("cnn_shortcut", "input")]
)
def test_corrected_models_have_no_official_form(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is '{value}'; the official program knows only"):
        official(**{key: value})
