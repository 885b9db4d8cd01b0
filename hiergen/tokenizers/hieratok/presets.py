"""Presets of `HieraTok`. The paper states no sizes: these are ours, from what it implies (f16, 256 tokens at 256 x 256)."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: Depth, channels and heads of an encoder or a decoder.
SIZES = {"s": (8, 512, 8), "b": (12, 768, 12), "l": (24, 1024, 16)}


def _parts(encoder: str, decoder: str) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for part, size in (("encoder", encoder), ("decoder", decoder)):
        config |= dict(zip((f"{part}_depth", f"{part}_dim", f"{part}_heads"), SIZES[size], strict=True))
    return config


_TINY: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "latent_dim": 8,
    "scales": [1, 2, 4],
    "encoder_dim": 128,
    "encoder_depth": 3,
    "encoder_heads": 4,
    "decoder_dim": 128,
    "decoder_depth": 4,
    "decoder_heads": 4,
    "tail_depth": 2,
    "kl_weight": 0.1,
    "has_preview_heads": True,
    "preview_weight": 0.2,
}

PRESETS: dict[str, Preset] = {
    "hieratok-s": Preset(model="HieraTok", config=_parts("s", "s"), source="Ours, after HieraTok, arXiv:2509.23736"),
    "hieratok-b": Preset(model="HieraTok", config=_parts("b", "b"), source="Ours, after HieraTok, arXiv:2509.23736"),
    "hieratok-l": Preset(
        model="HieraTok",
        config=_parts("b", "l"),
        source="Ours, after HieraTok, arXiv:2509.23736; a large decoder on a base encoder, because ViTok (arXiv:2501.09755) and "
        "GigaTok (arXiv:2504.08736) find that decoder size pays and encoder size does not",
    ),
    "hieratok-tiny": Preset(
        model="HieraTok",
        config=_TINY,
        source="Ours: trains on two CPU cores, on 32 x 32 images",
    ),
    "hieratok-tiny-color": Preset(
        model="HieraTok",
        config={
            "image_size": 32,
            "patch_size": 8,
            "latent_dim": 16,
            "scales": [1, 2, 4],
            "latent": "all",
            "encoder_dim": 128,
            "encoder_depth": 0,
            "encoder_heads": 4,
            "decoder_dim": 128,
            "decoder_depth": 2,
            "decoder_heads": 4,
            "conv_channels": 64,
            "kl_weight": 1e-3,
            "has_preview_heads": True,
            "preview_weight": 0.05,
        },
        source="Ours: trains on two CPU cores, three levels of 336 numbers for a 32 x 32 image in color",
    ),
    "hieratok-conv-64": Preset(
        model="HieraTok",
        config={
            "image_size": 64,
            "patch_size": 8,
            "latent_dim": 16,
            "scales": [8],
            "encoder_dim": 192,
            "encoder_depth": 0,
            "encoder_heads": 6,
            "decoder_dim": 192,
            "decoder_depth": 0,
            "decoder_heads": 6,
            "conv_channels": 128,
            "kl_weight": 1e-3,
        },
        source="Ours: convolutions that train on two CPU cores, 1,024 numbers for a 64 x 64 image",
    ),
    "hieratok-photographs": Preset(
        model="HieraTok",
        config={
            "image_size": 64,
            "patch_size": 8,
            "latent_dim": 16,
            "scales": [1, 2, 4, 8],
            "latent": "all",
            "encoder_dim": 160,
            "encoder_depth": 0,
            "encoder_heads": 5,
            "decoder_dim": 160,
            "decoder_depth": 2,
            "decoder_heads": 5,
            "conv_channels": 64,
            "kl_weight": 1e-3,
            "has_preview_heads": True,
            "preview_weight": 0.02,
        },
        source="Ours: four levels for windows of photographs, trains on two CPU cores",
    ),
    "hieratok-tiny-levels": Preset(
        model="HieraTok",
        config={**_TINY, "latent": "all"},
        source="Ours: hieratok-tiny with latents of their own for every scale, for generators that go level by level",
    ),
}
