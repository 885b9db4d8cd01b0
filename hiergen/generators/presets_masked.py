"""Presets of `MaskedAR`: MAR in its three sizes on KL-16's latents, and a tiny one."""

from __future__ import annotations

from typing import Any

from hiergen.preset import Preset
from hiergen.pyramid import LevelSpec, specs_to_json

#: Latents of a 256 x 256 image under the KL-16 autoencoder.
KL16_SPECS = (LevelSpec(num_tokens=256, grid=(16, 16), dim=16),)


def _config(dim: int, depth: int, num_heads: int, head_depth: int, head_dim: int) -> dict[str, Any]:
    """Return a published size: encoder and decoder are alike."""
    return {
        "level_specs": specs_to_json(KL16_SPECS),
        "num_classes": 1000,
        "encoder_dim": dim,
        "encoder_depth": depth,
        "encoder_heads": num_heads,
        "decoder_dim": dim,
        "decoder_depth": depth,
        "decoder_heads": num_heads,
        "head_dim": head_dim,
        "head_depth": head_depth,
        "latent_multiplier": 0.2325,
    }


PRESETS: dict[str, Preset] = {
    "mar-b": Preset("MaskedAR", _config(768, 12, 12, 6, 1024), "MAR, arXiv:2406.11838, base, 208 M parameters"),
    "mar-l": Preset("MaskedAR", _config(1024, 16, 16, 8, 1280), "MAR, arXiv:2406.11838, large, 479 M parameters"),
    "mar-h": Preset("MaskedAR", _config(1280, 20, 16, 12, 1536), "MAR, arXiv:2406.11838, huge, 943 M parameters"),
    "mar-tiny": Preset(
        "MaskedAR",
        {
            "level_specs": specs_to_json((LevelSpec(num_tokens=16, grid=(4, 4), dim=8),)),
            "num_classes": 10,
            "num_buffer": 4,
            "encoder_dim": 128,
            "encoder_depth": 3,
            "encoder_heads": 4,
            "decoder_dim": 128,
            "decoder_depth": 3,
            "decoder_heads": 4,
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "head_dim": 192,
            "head_depth": 3,
        },
        "ours: trains on a CPU in minutes; 16 tokens of 8 channels",
    ),
}
