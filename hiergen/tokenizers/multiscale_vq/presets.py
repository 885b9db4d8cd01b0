"""Presets of `MultiScaleVQ`: VAR's tokenizer at two image sizes, and a small one."""

from __future__ import annotations

from hiergen.registry import Preset

#: Sides of the levels at 512 x 512; those at 256 x 256 are the class's default.
LADDER_512 = [1, 2, 3, 4, 6, 9, 13, 18, 24, 32]

PRESETS: dict[str, Preset] = {
    "multiscale-vq-680": Preset(
        "MultiScaleVQ", {}, "VAR, arXiv:2404.02905: vae_ch160v4096z32, ten levels, 680 tokens at 256 x 256"
    ),
    "multiscale-vq-2240": Preset(
        "MultiScaleVQ",
        {"image_size": 512, "sides": LADDER_512},
        "VAR, arXiv:2404.02905: the same weights, ten levels, 2,240 tokens at 512 x 512",
    ),
    "multiscale-vq-tiny": Preset(
        "MultiScaleVQ",
        {
            "widths": [32, 32, 64],
            "num_blocks": 1,
            "code_dim": 8,
            "vocab_size": 512,
            "image_size": 32,
            "sides": [1, 2, 3, 4, 6, 8],
        },
        "32 x 32 pixels, six levels, 130 tokens: trains on a CPU in minutes",
    ),
}
