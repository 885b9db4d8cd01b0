"""Presets of `MaskedAR` and `MaskedCascade`: MAR on images in its three sizes, MAR-3D on shapes, and tiny ones."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

#: Latents of a 256 x 256 image under the KL-16 autoencoder.
KL16_SPECS = (LevelSpec(num_tokens=256, grid=(16, 16), dim=16),)

#: Both resolutions of a shape under the pyramid VAE.
SHAPE_SPECS = (LevelSpec(num_tokens=256, dim=64), LevelSpec(num_tokens=1024, dim=64))


def _size(dim: int, depth: int, num_heads: int) -> dict[str, Any]:
    """Return the sizes of an encoder and a decoder that are alike."""
    sizes = {"dim": dim, "depth": depth, "heads": num_heads}
    return {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}


def _config(dim: int, depth: int, num_heads: int, head_depth: int, head_dim: int) -> dict[str, Any]:
    """Return a published size."""
    return {
        "level_specs": specs_to_json(KL16_SPECS),
        "num_classes": 1000,
        **_size(dim, depth, num_heads),
        "head_dim": head_dim,
        "head_depth": head_depth,
        "latent_multiplier": 0.2325,
    }


_TINY: dict[str, Any] = {
    "num_classes": 10,
    "num_buffer": 4,
    **_size(128, 3, 4),
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "head_dim": 192,
    "head_depth": 3,
}

PRESETS: dict[str, Preset] = {
    "mar-b": Preset("MaskedAR", _config(768, 12, 12, 6, 1024), "MAR, arXiv:2406.11838, base, 208 M parameters"),
    "mar-l": Preset("MaskedAR", _config(1024, 16, 16, 8, 1280), "MAR, arXiv:2406.11838, large, 479 M parameters"),
    "mar-h": Preset("MaskedAR", _config(1280, 20, 16, 12, 1536), "MAR, arXiv:2406.11838, huge, 943 M parameters"),
    "mar-tiny": Preset(
        "MaskedAR",
        {"level_specs": specs_to_json((LevelSpec(num_tokens=16, grid=(4, 4), dim=8),)), **_TINY},
        "ours: trains on a CPU in minutes; the tokens of hieratok-tiny",
    ),
    "mar-tiny-levels": Preset(
        "MaskedAR",
        {
            "level_specs": specs_to_json([LevelSpec(side**2, (side, side), dim=8) for side in (1, 2, 4)]),
            "order": "levelwise",
            **_TINY,
        },
        "ours: mar-tiny on the levels of hieratok-tiny-levels, the coarsest map first, every finer one given the coarser",
    ),
    "mar3d-lr": Preset(
        "MaskedAR",
        {
            **_config(1024, 16, 16, 6, 1024),
            "level_specs": specs_to_json(SHAPE_SPECS[:1]),
            "num_classes": None,
            "feature_shapes": [[257, 1024]],
            "norm_eps": 1e-5,
            "latent_multiplier": 1.0,
        },
        "MAR-3D's release, arXiv:2503.20519: the coarse stage on CLIP ViT-L/14 features, 441.9 M parameters",
    ),
    "mar3d": Preset(
        "MaskedCascade",
        {"level_specs": specs_to_json(SHAPE_SPECS), "feature_shapes": [[257, 1024], [257, 768]]},
        "MAR-3D, arXiv:2503.20519: both stages in the released stage's size, on CLIP ViT-L/14 and DINOv2-base features; how the "
        "paper joins them is not stated, here along the sequence",
    ),
    "mar3d-tiny": Preset(
        "MaskedCascade",
        {
            "level_specs": specs_to_json((LevelSpec(16, None, dim=16), LevelSpec(32, None, dim=16))),
            "num_classes": 10,
            "num_buffer": 4,
            "dim": 128,
            "depth": 2,
            "num_heads": 4,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "head_dim": 128,
            "head_depth": 2,
        },
        "ours: trains on a CPU in minutes; the tokens of pyramid-vae-tiny, by class",
    ),
}
