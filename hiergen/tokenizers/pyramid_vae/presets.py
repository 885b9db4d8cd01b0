"""The presets of the shape tokenizers."""

from __future__ import annotations

from hiergen.registry import Preset

PRESETS: dict[str, Preset] = {
    "pyramid-vae-shapes": Preset(
        model="PyramidVAE",
        config={"num_tokens": [256, 1024], "point_counts": [16384, 4096, 1024]},
        source="MAR-3D, arXiv:2503.20519, section 3.1: three point resolutions, 256 and 1024 tokens. Width, heads and depths, "
        "which the paper does not state, are those of its released VAE training configuration.",
    ),
    "pyramid-vae-mar3d": Preset(
        model="PyramidVAE",
        config={"num_tokens": [256], "point_counts": None},
        source="MAR-3D's release, configuration of the VAE training: one level of 256 tokens, 8 and 16 blocks.",
    ),
    "pyramid-vae-mar3d-large": Preset(
        model="PyramidVAE",
        config={"num_tokens": [256], "point_counts": None, "encoder_depth": 16, "decoder_depth": 32},
        source="MAR-3D's release, configuration of the generator training: one level of 256 tokens, 16 and 32 blocks.",
    ),
    "pyramid-vae-michelangelo": Preset(
        model="PyramidVAE",
        config={"num_tokens": [256], "point_counts": None, "qkv_bias": False},
        source="Michelangelo, arXiv:2306.17115, without its CLIP-aligned token: 256 learned queries, no biases in the "
        "projections.",
    ),
    "pyramid-vae-craftsman": Preset(
        model="PyramidVAE",
        config={"num_tokens": [768], "point_counts": None, "queries": "farthest", "qkv_bias": False},
        source="CraftsMan3D, arXiv:2405.14979, published weights: 768 farthest-point queries, no biases in the projections.",
    ),
    "pyramid-vae-tiny": Preset(
        model="PyramidVAE",
        config={
            "num_tokens": [16, 32],
            "token_dim": 16,
            "width": 64,
            "num_heads": 4,
            "encoder_depth": 2,
            "decoder_depth": 2,
            "num_frequencies": 7,
            "point_counts": [1024, 256, 64],
            # With the released start nothing is learned in the first minutes (docs/log.md).
            "init_scale": 1.0,
            "init_log_variance": -6.0,
        },
        source="The shape of pyramid-vae-shapes at a size that two CPU cores train in minutes.",
    ),
    "pyramid-vae-small": Preset(
        model="PyramidVAE",
        config={
            "num_tokens": [8, 64],
            "token_dim": 16,
            "width": 64,
            "num_heads": 4,
            "encoder_depth": 2,
            "decoder_depth": 2,
            # Half and quarter cubes repeat with the periods of these frequencies: a place in its cell is the same for all cells.
            "num_frequencies": 6,
            "include_pi": True,
            # Shapes end at 0.95. Beyond 1 is the other end of these periods.
            "extent": 1.0,
            "anchor_reach": [0.35, 0.5, 1.0, 0.0],
            "point_counts": [1024],
            "init_scale": 1.0,
            "init_log_variance": -6.0,
        },
        source="ours: pyramid-vae-tiny with a place for every token, 2 and 4 cells along each axis, so that the fine level holds what the "
        "coarse one cannot.",
    ),
}
