"""Presets of `NextScaleAR`: VAR in its published sizes, and a small one."""

from __future__ import annotations

from typing import Any

from hiergen.levels import specs_to_json, square_specs
from hiergen.registry import Preset

#: Sides of the levels at 256 x 256 and 512 x 512 pixels.
LADDERS = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
#: Number of blocks of each size, and the factor of the initial weights of its gates.
SIZES = {16: 1e-3, 20: 1e-3, 24: 1e-4, 30: 1e-5, 36: 5e-6}


def _config(depth: int, image_size: int) -> dict[str, Any]:
    """Return a size of VAR: 64 channels and one head for every block."""
    return {
        "level_specs": specs_to_json(square_specs(LADDERS[image_size], dim=32, vocab_size=4096)),
        "dim": 64 * depth,
        "depth": depth,
        "num_heads": depth,
        "shares_modulation": image_size == 512,
        "gate_init": SIZES[depth],
    }


PRESETS: dict[str, Preset] = {
    "var-tiny": Preset(
        "NextScaleAR",
        {
            "level_specs": specs_to_json(square_specs((1, 2, 3, 4, 6, 8), dim=8, vocab_size=512)),
            "num_classes": 10,
            "dim": 160,
            "depth": 4,
            "num_heads": 5,
            "drop_path": 0.0,
        },
        "10 classes, six levels, 130 tokens: trains on a CPU in minutes",
    ),
    **{
        f"var-d{depth}": Preset(
            "NextScaleAR", _config(depth, 256), f"VAR, arXiv:2404.02905, depth {depth} at 256 x 256"
        )
        for depth in (16, 20, 24, 30)
    },
    "var-d36-512": Preset(
        "NextScaleAR", _config(36, 512), "VAR, arXiv:2404.02905, depth 36, shared AdaLN, at 512 x 512"
    ),
}
