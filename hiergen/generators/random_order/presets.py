"""Presets of `RandomOrderAR`: RAR in its four sizes, and a tiny one."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

#: Width, depth and hidden channels of each size, and what it reaches.
SIZES = {
    "b": (768, 24, 3072, "gFID 1.95, 261 M parameters"),
    "l": (1024, 24, 4096, "gFID 1.70, 462 M parameters"),
    "xl": (1280, 32, 5120, "gFID 1.50, 955 M parameters"),
    "xxl": (1408, 40, 6144, "gFID 1.48, 1,499 M parameters"),
}


def _config(dim: int, depth: int, ffn_dim: int) -> dict[str, Any]:
    return {
        "level_specs": specs_to_json([LevelSpec(256, (16, 16), dim=256, vocab_size=1024)]),
        "num_classes": 1000,
        "dim": dim,
        "depth": depth,
        "num_heads": 16,
        "ffn_dim": ffn_dim,
        "num_position_rows": 1280,
        "num_step_rows": 356,
    }


PRESETS: dict[str, Preset] = {
    **{
        f"rar-{size}": Preset("RandomOrderAR", _config(dim, depth, ffn_dim), f"RAR, arXiv:2411.00776: {reached}")
        for size, (dim, depth, ffn_dim, reached) in SIZES.items()
    },
    "rar-tiny": Preset(
        "RandomOrderAR",
        {
            "level_specs": specs_to_json([LevelSpec(16, (4, 4), dim=8, vocab_size=256)]),
            "num_classes": 10,
            "dim": 128,
            "depth": 4,
            "num_heads": 4,
            "dropout": 0.0,
        },
        "ours: trains on a CPU in minutes; the tokens of maskgit-vq-tiny",
    ),
}
