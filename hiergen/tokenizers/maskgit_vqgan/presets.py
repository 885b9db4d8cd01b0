"""Presets of MaskGIT-VQGAN."""

from __future__ import annotations

from hiergen.registry import Preset

PRESETS: dict[str, Preset] = {
    "maskgit-vq": Preset(
        "MaskGITVQ",
        {
            "image_size": 256,
            "cnn_channels": 128,
            "cnn_multipliers": [1, 1, 2, 2, 4],
            "z_channels": 256,
            "vocab_size": 1024,
        },
        "MaskGIT, arXiv:2202.04200: 256 tokens of ImageNet 256x256, rFID 2.28; proxy codes of TiTok, tokens of RAR",
    ),
    "maskgit-vq-tiny": Preset(
        "MaskGITVQ",
        {
            "image_size": 32,
            "cnn_channels": 16,
            "cnn_multipliers": [1, 2, 4, 4],
            "cnn_blocks": 1,
            "cnn_mid_blocks": 1,
            "cnn_groups": 8,
            "cnn_shortcut": "input",
            "z_channels": 8,
            "vocab_size": 256,
            "commitment_weight": 0.25,
            "codebook_weight": 1.0,
        },
        "ours: 16 tokens of 32x32 images on a CPU, with the ordinary shortcut and weights of the loss",
    ),
}
