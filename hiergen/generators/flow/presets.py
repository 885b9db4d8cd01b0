"""Presets of `FlowTransformer`: LightningDiT's and SiT's sizes, and a tiny one."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset

#: Depth, channels and heads of each size.
SIZES = {"b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16), "1p0b": (24, 1536, 24), "1p6b": (28, 1792, 28)}


def _level(side: int, dim: int) -> list[dict[str, Any]]:
    return [{"num_tokens": side**2, "grid": [side, side], "dim": dim}]


def _size(size: str) -> dict[str, Any]:
    depth, dim, num_heads = SIZES[size]
    return {"dim": dim, "depth": depth, "num_heads": num_heads}


_SIT = {"norm": "layer", "ffn": "gelu", "use_rotary": False, "time_distribution": "uniform", "cosine_weight": 0.0}

PRESETS: dict[str, Preset] = {
    **{
        f"lightningdit-{size}": Preset(
            model="FlowTransformer",
            config={"level_specs": _level(16, 32), **_size(size)},
            source="LightningDiT, arXiv:2501.01423, on VA-VAE f16d32 of 256 x 256 images",
        )
        for size in SIZES
    },
    **{
        f"sit-{size}": Preset(
            model="FlowTransformer",
            config={
                "level_specs": _level(32, 4),
                **_size(size),
                "patch_size": 2,
                "has_double_output": True,
                "latent_std": [1 / 0.18215] * 4,
                **_SIT,
            },
            source="SiT, arXiv:2401.08740, on the Stable Diffusion VAE (f8, 4 channels) of 256 x 256 images",
        )
        for size in ("b", "l", "xl")
    },
    "flow-tiny": Preset(
        model="FlowTransformer",
        config={
            "level_specs": _level(4, 8),
            "num_classes": 10,
            "dim": 128,
            "depth": 4,
            "num_heads": 4,
        },
        source="Ours: trains on two CPU cores, for hieratok-tiny on 32 x 32 images",
    ),
    "flow-video-tiny": Preset(
        model="FlowTransformer",
        config={
            "level_specs": [{"num_tokens": 128, "grid": [8, 4, 4], "dim": 24}],
            "num_classes": 10,
            "dim": 96,
            "depth": 4,
            "num_heads": 3,
            "use_qk_norm": True,
            # One scale for all components, not one each: the first hold what is seen. 0.22 gives the tokens of the moving digits a root
            # mean square of 0.5.
            "latent_multiplier": 0.22,
            # Which digit a clip shows is decided between t = 0.1 and 0.25, where unshifted times hardly train (docs/log.md).
            "time_shift": 0.4,
            "cosine_weight": 0.0,
        },
        source="Ours: trains on two CPU cores, for patches-tiny on clips of 32 frames of 24 x 24 pixels",
    ),
    "flow-video-emoji-48": Preset(
        model="FlowTransformer",
        config={
            "level_specs": [{"num_tokens": 144, "grid": [4, 6, 6], "dim": 64}],
            "num_classes": 10,
            "dim": 144,
            "depth": 4,
            "num_heads": 4,
            "use_qk_norm": True,
            # As in flow-video-tiny: 0.34 gives the tokens of the moving emoji a root mean square of 0.5, and a clip is three times the numbers.
            "latent_multiplier": 0.34,
            "time_shift": 0.3,
            "cosine_weight": 0.0,
        },
        source="Ours: trains on two CPU cores, for patches-emoji-48 on clips of 16 frames of 48 x 48 pixels",
    ),
    "flow-video-s": Preset(
        model="FlowTransformer",
        config={
            "level_specs": [{"num_tokens": 4096, "grid": [16, 16, 16], "dim": 8}],
            "dim": 384,
            "depth": 12,
            "num_heads": 6,
            "use_qk_norm": True,
        },
        source="Ours, untrained: DiT-S of arXiv:2212.09748 on clips, for frames-128 (16 frames of 128 x 128 pixels) on one GPU",
    ),
}
