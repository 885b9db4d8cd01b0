"""Presets of ResTok."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: Width, depth and heads of the transformer parts.
_SIZES = {"small": (512, 6, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


def _sizes(encoder: str, decoder: str) -> dict[str, Any]:
    names = [f"{side}_{name}" for side in ("encoder", "decoder") for name in ("dim", "depth", "heads")]
    return dict(zip(names, _SIZES[encoder] + _SIZES[decoder], strict=True))


#: Everything but the sizes, as published: the defaults of `ResTok`, written out so that a change there cannot change these.
_PUBLISHED: dict[str, Any] = {
    "image_size": 256,
    "cnn_channels": 128,
    "cnn_multipliers": [1, 1, 2, 2, 4],
    "cnn_shortcut": "branch",
    "z_channels": 256,
    "num_latent_tokens": 128,
    "min_tokens": 4,
    "code_dim": 8,
    "vocab_size": 8192,
    "num_image_levels": 4,
    "merge": "even",
    "projection": "reinterpreted",
    "drop_prob": 0.2,
}

_SIZE_SOURCE = "ResTok's code (arXiv:2601.03955): a size it defines but published no weights of; 128 tokens"

PRESETS: dict[str, Preset] = {
    "restok-l-128": Preset(
        model="ResTok",
        config={**_PUBLISHED, **_sizes("large", "large")},
        source="ResTok, arXiv:2601.03955: ResTok-L-128, ImageNet 256x256, rFID 1.28",
    ),
    "restok-bl-128": Preset("ResTok", {**_PUBLISHED, **_sizes("base", "large")}, _SIZE_SOURCE),
    "restok-sl-128": Preset("ResTok", {**_PUBLISHED, **_sizes("small", "large")}, _SIZE_SOURCE),
    "restok-bb-128": Preset("ResTok", {**_PUBLISHED, **_sizes("base", "base")}, _SIZE_SOURCE),
    "restok-sb-128": Preset("ResTok", {**_PUBLISHED, **_sizes("small", "base")}, _SIZE_SOURCE),
    "restok-ss-128": Preset("ResTok", {**_PUBLISHED, **_sizes("small", "small")}, _SIZE_SOURCE),
    "restok-tiny": Preset(
        model="ResTok",
        config={
            "image_size": 32,
            "cnn_channels": 16,
            "cnn_multipliers": [1, 2, 4, 4],
            "cnn_blocks": 1,
            "cnn_mid_blocks": 1,
            "cnn_groups": 8,
            "cnn_shortcut": "input",
            "z_channels": 64,
            "encoder_dim": 128,
            "encoder_depth": 3,
            "encoder_heads": 4,
            "decoder_dim": 128,
            "decoder_depth": 3,
            "decoder_heads": 4,
            "mlp_ratio": 2.0,
            "num_latent_tokens": 16,
            "min_tokens": 1,
            "code_dim": 8,
            "vocab_size": 512,
            "num_image_levels": 2,
            "residual_latent_tokens": False,
            "learnable_image_tokens": False,
            "entropy_weight": 0.1,
            "merge": "average",
            "projection": "per_token",
            "drop_prob": 0.2,
        },
        source="ours: 32x32 images on a CPU, with the corrected projection, merge and shortcut",
    ),
}
