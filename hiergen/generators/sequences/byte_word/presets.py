"""Presets of `ByteWordTransformer`: the published sizes, and tiny ones."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

_SOURCE = "TFree-HAT, arXiv:2603.15953; sizes alone, its weights are for non-commercial use"

_8B: dict[str, Any] = {"dim": 4096, "depth": 32, "num_heads": 32, "num_kv_heads": 8, "ffn_dim": 14336}
_70B: dict[str, Any] = {
    "dim": 8192,
    "depth": 80,
    "num_heads": 64,
    "num_kv_heads": 8,
    "ffn_dim": 28672,
    "byte_dim": 2048,
    "byte_heads": 16,
    "byte_ffn_dim": 5632,
}
_TINY: dict[str, Any] = {
    "dim": 192,
    "depth": 3,
    "num_heads": 6,
    "num_kv_heads": 3,
    "ffn_dim": 512,
    "byte_dim": 96,
    "byte_heads": 4,
    "byte_ffn_dim": 256,
    "encoder_depth": 2,
    "decoder_depth": 2,
    "window": 128,
}

PRESETS: dict[str, Preset] = {
    "byte-word-8b": Preset("ByteWordTransformer", _8B, f"{_SOURCE}: from Llama-3.1-8B"),
    "byte-word-7b": Preset("ByteWordTransformer", {**_8B, "use_qk_norm": True}, f"{_SOURCE}: trained from scratch"),
    "byte-word-70b": Preset("ByteWordTransformer", _70B, f"{_SOURCE}: from Llama-3.1-70B"),
    "byte-word-tiny": Preset("ByteWordTransformer", _TINY, "ours: bytes; trains on a CPU in minutes"),
    "byte-word-tiny-levels": Preset(
        "ByteWordTransformer",
        {
            **_TINY,
            "level_specs": specs_to_json([LevelSpec(n, dim=8, vocab_size=512) for n in (1, 1, 2, 4, 8)]),
            "num_classes": 10,
        },
        "ours: words are the levels of restok-tiny's tokens",
    ),
}
