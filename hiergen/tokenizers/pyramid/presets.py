"""Presets of `PyramidTokenizer`: small ones of our own mixers, and one on a published backbone."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: 32 x 32 pixels in maps of 2 x 2, 4 x 4 and 8 x 8.
_TINY: dict[str, Any] = {
    "backbone": "mixer:depthwise",
    "backbone_options": {"widths": [32, 64, 96], "depths": [1, 1, 1], "stem": 4},
    "decoder_channels": 32,
    "decoder_multipliers": [1, 2, 2],
}

PRESETS: dict[str, Preset] = {
    "pyramid-tiny-84": Preset(
        "PyramidTokenizer",
        _TINY,
        "Our own: 32 x 32 pixels, three levels, 84 tokens of 8 bits: trains on a CPU in minutes",
    ),
    "pyramid-tiny-kl-84": Preset(
        "PyramidTokenizer",
        {**_TINY, "vocab_size": None, "code_dim": 4},
        "pyramid-tiny-84 with continuous tokens of four numbers, for MAR and flow",
    ),
    "pyramid-small-340": Preset(
        "PyramidTokenizer",
        {
            "image_size": 64,
            "backbone": "mixer:neighborhood",
            "backbone_options": {
                "widths": [32, 64, 96, 128],
                "depths": [1, 2, 2, 1],
                "stem": 4,
                "mixer_options": [{"kernel": 3}, {"kernel": 3, "dilation": 2}],
            },
            "vocab_size": 1024,
            "decoder_channels": 64,
            "decoder_multipliers": [1, 2, 2],
        },
        "Our own: 64 x 64 pixels, four levels, 340 tokens of 10 bits; neighborhoods as in DiNAT, arXiv:2209.15001",
    ),
    "pyramid-convnext-320": Preset(
        "PyramidTokenizer",
        {
            "image_size": 256,
            "backbone": "timm:convnext_tiny.in12k_ft_in1k",
            "backbone_options": {"out_indices": [2, 3]},
            "vocab_size": 8192,
            "code_dim": 16,
            "decoder_channels": 128,
            "decoder_multipliers": [1, 1, 2, 2, 4],
            "decoder_blocks": 2,
            "decoder_mid_blocks": 2,
            "decoder_groups": 32,
        },
        "Our own: 256 x 256 pixels, maps of 8 x 8 and 16 x 16 of a ConvNeXt, arXiv:2201.03545; random weights unless "
        "backbone_weights says otherwise",
    ),
}
