"""Presets of `SuperResolution`: a small one behind the smallest pyramid, and the published network behind a larger one."""

from __future__ import annotations

from typing import Any

from hiergen.registry import Preset
from hiergen.tokenizers.pyramid.presets import PRESETS as PYRAMIDS


def _behind(name: str) -> dict[str, Any]:
    return {"class": PYRAMIDS[name].model, **PYRAMIDS[name].config}


PRESETS: dict[str, Preset] = {
    "drct-tiny-84": Preset(
        "SuperResolution",
        {
            "base": _behind("pyramid-tiny-84"),
            "dim": 32,
            "growth": 16,
            "groups": 1,
            "num_heads": 4,
            "last_dim": 16,
            "window": 8,
        },
        "Our own: pyramid-tiny-84 at twice its size, 64 x 64 pixels; trains on a CPU in minutes",
    ),
    "drct-b-320": Preset(
        "SuperResolution",
        {"base": _behind("pyramid-convnext-320")},
        "DRCT's network, arXiv:2404.00722, behind pyramid-convnext-320: 512 x 512 pixels",
    ),
}
