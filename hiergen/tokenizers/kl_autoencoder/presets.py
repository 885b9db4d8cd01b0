"""Presets of `KLAutoencoder`."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset


def _f16(latent_channels: int, *, has_decoder_attention: bool) -> dict[str, Any]:
    """Return the autoencoder of stride 16 that the papers share, attention at its coarsest resolution."""
    up = "AttnUpDecoderBlock2D" if has_decoder_attention else "UpDecoderBlock2D"
    return {
        "autoencoder": {
            "down_block_types": ["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
            "up_block_types": [up] + ["UpDecoderBlock2D"] * 4,
            "block_out_channels": [128, 128, 256, 256, 512],
            "layers_per_block": 2,
            "latent_channels": latent_channels,
            "norm_num_groups": 32,
            "sample_size": 256,
            "scaling_factor": 1.0,
        }
    }


PRESETS: dict[str, Preset] = {
    "kl-16": Preset(
        model="KLAutoencoder",
        config=_f16(16, has_decoder_attention=False),
        source="KL-16 of MAR, arXiv:2406.11838: 256 tokens of 16 channels at 256 x 256",
    ),
    "va-vae-f16d32": Preset(
        model="KLAutoencoder",
        config=_f16(32, has_decoder_attention=True),
        source="VA-VAE, arXiv:2501.01423: 256 tokens of 32 channels at 256 x 256",
    ),
}
