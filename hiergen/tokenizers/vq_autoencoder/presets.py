"""Presets of `VQAutoencoder`."""

from __future__ import annotations

from hiergen.registry import Preset

PRESETS: dict[str, Preset] = {
    "vq-16": Preset(
        "VQAutoencoder",
        {"widths": [128, 128, 256, 256, 512]},
        "VQ-16 of LlamaGen, arXiv:2406.06525: 256 tokens at 256 x 256",
    ),
    "vq-8": Preset(
        "VQAutoencoder",
        {"widths": [128, 256, 256, 512]},
        "VQ-8 of LlamaGen, arXiv:2406.06525: 1,024 tokens at 256 x 256",
    ),
}
