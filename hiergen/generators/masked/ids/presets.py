"""Presets of `MaskedIds`: TiTok's generators, and a tiny one."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset


def _published(num_tokens: int, **sizes: Any) -> dict[str, Any]:
    specs = specs_to_json([LevelSpec(num_tokens, dim=12, vocab_size=4096)])
    return {"level_specs": specs, "num_classes": 1000, "num_heads": 16, **sizes}


_BERT = {"blocks": "post_norm", "dim": 768, "depth": 24}
#: The released program of this form uses no dropout, whatever its config says.
_SKIP = {"blocks": "skip", "dim": 1024, "depth": 20, "dropout": 0.0}

PRESETS: dict[str, Preset] = {
    "maskgit-l-32": Preset(
        "MaskedIds", _published(32, **_BERT), "TiTok, arXiv:2406.07550: on TiTok-L-32, gFID 2.77, 177 M parameters"
    ),
    "maskgit-b-64": Preset(
        "MaskedIds", _published(64, **_BERT), "TiTok, arXiv:2406.07550: on TiTok-B-64, gFID 2.48, 177 M parameters"
    ),
    "maskgit-s-128": Preset(
        "MaskedIds", _published(128, **_SKIP), "TiTok, arXiv:2406.07550: on TiTok-S-128, gFID 1.97, 295 M parameters"
    ),
    "maskgit-tiny": Preset(
        "MaskedIds",
        {
            "level_specs": specs_to_json([LevelSpec(16, dim=8, vocab_size=256)]),
            "num_classes": 10,
            "blocks": "skip",
            "dim": 128,
            "depth": 4,
            "num_heads": 4,
            "dropout": 0.0,
        },
        "ours: trains on a CPU in minutes; the tokens of titok-tiny",
    ),
}
