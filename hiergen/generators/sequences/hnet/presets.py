"""Presets of `HNet`: the published sizes, tiny ones, and the plain models they are to be compared with."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

_SOURCE = "H-Net, arXiv:2507.07955"


def _one(dim: int, depth: int) -> dict[str, Any]:
    return {
        "layout": ["m4", [f"T{depth}"], "m4"],
        "dims": [1024, dim],
        "num_heads": [16, 16],
        "targets": [6.0],
    }


def _two(middle: int, dim: int, depth: int) -> dict[str, Any]:
    return {
        "layout": ["m4", ["T1m4", [f"T{depth}"], "m4T1"], "m4"],
        "dims": [1024, middle, dim],
        "num_heads": [16, 16, 16],
        "windows": [None, 1023, None],
        "targets": [3.0, 3.0],
    }


#: About 0.7 million multiply-adds per byte each.
_TINY: dict[str, Any] = {"state_dim": 32, "head_dim": 32, "chunk_size": 32}
_HNET_TINY = {**_TINY, "layout": ["m2", ["T4"], "m2"], "dims": [96, 192], "num_heads": [4, 4]}
_FLAT: dict[str, Any] = {**_TINY, "dims": [96], "num_heads": [4]}
_TWO_TINY = {
    **_TINY,
    "layout": ["m2", ["T1m1", ["T3"], "m1T1"], "m2"],
    "dims": [96, 128, 192],
    "num_heads": [4, 4, 4],
    "windows": [None, 63, None],
}
#: The tokens of a picture of 4 x 4.
_CLASSES = {"level_specs": specs_to_json([LevelSpec(16, (4, 4), dim=8, vocab_size=256)]), "num_classes": 10}

PRESETS: dict[str, Preset] = {
    "hnet-1stage-l": Preset("HNet", _one(1536, 22), f"{_SOURCE}: 680M, one stage of chunks"),
    "hnet-1stage-xl": Preset("HNet", _one(2048, 24), f"{_SOURCE}: 1.3B, one stage of chunks"),
    "hnet-2stage-l": Preset("HNet", _two(1024, 1536, 26), f"{_SOURCE}: 870M, two stages of chunks"),
    "hnet-2stage-xl": Preset("HNet", _two(1536, 2048, 27), f"{_SOURCE}: 1.6B, two stages of chunks"),
    "hnet-2stage-xl-chinese": Preset("HNet", _two(1536, 2048, 30), f"{_SOURCE}: for Chinese"),
    "hnet-2stage-xl-code": Preset("HNet", _two(1536, 2048, 28), f"{_SOURCE}: for program code"),
    "hnet-tiny": Preset("HNet", _HNET_TINY, "ours: bytes, trains on a CPU in minutes"),
    "hnet-2stage-tiny": Preset("HNet", _TWO_TINY, "ours: hnet-tiny with a stage of chunks of chunks"),
    "flat-transformer-tiny": Preset(
        "HNet", {**_FLAT, "layout": ["T6"]}, "ours: as much work per byte as hnet-tiny, without chunks or Mamba-2"
    ),
    "flat-mamba-tiny": Preset(
        "HNet", {**_FLAT, "layout": ["m7"]}, "ours: as much work per byte as hnet-tiny, without chunks"
    ),
    "hnet-tiny-16": Preset(
        "HNet", {**_HNET_TINY, **_CLASSES, "targets": [3.0]}, "ours: images by class, the tokens of maskgit-vq-tiny"
    ),
}
