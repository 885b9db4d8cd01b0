"""Presets of FlexTok: the published sizes on the latents of an autoencoder, and a tiny one on pixels."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: diffusers' autoencoder of stride 8 that the published models share.
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 1.0,
}


def _published(encoder_depth: int, decoder_depth: int) -> Preset:
    config: dict[str, Any] = {"image_size": 256, "autoencoder": AUTOENCODER}
    for side, depth in (("encoder", encoder_depth), ("decoder", decoder_depth)):
        config |= {f"{side}_dim": 64 * depth, f"{side}_depth": depth, f"{side}_heads": depth}
    return Preset("FlexTok", config, f"FlexTok d{encoder_depth}-d{decoder_depth}, arXiv:2502.13967, 256x256")


PRESETS: dict[str, Preset] = {
    "flextok-d12-d12": _published(12, 12),
    "flextok-d18-d18": _published(18, 18),
    "flextok-d18-d28": _published(18, 28),
    "flextok-tiny": Preset(
        "FlexTok",
        {
            "image_size": 32,
            "patch_size": 4,
            "encoder_dim": 128,
            "encoder_depth": 3,
            "encoder_heads": 4,
            "decoder_dim": 128,
            "decoder_depth": 4,
            "decoder_heads": 4,
            "num_registers": 16,
            "code_levels": [4, 4, 4, 4],
            "guidance": "plain",
            "guidance_scale": 1.5,
            "spread_weight": 1.0,
        },
        "ours: 16 tokens of 256 codes, of 32x32 images on a CPU, on pixels",
    ),
}
