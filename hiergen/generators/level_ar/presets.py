"""Presets of `LevelAR`: HAR and its token-by-token twin in LlamaGen's sizes, for ResTok's levels; LlamaGen itself, for VQ-16."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

#: Depth, heads and channels of each size.
SIZES = {"b": (12, 12, 768), "l": (24, 16, 1024), "xl": (36, 20, 1280), "xxl": (48, 24, 1536), "xxxl": (48, 40, 2560)}
_LLAMAGEN_SIZES = {**SIZES, "3b": (24, 32, 3200)}


def doubling_specs(num_tokens: int, *, dim: int, vocab_size: int) -> tuple[LevelSpec, ...]:
    """Return ResTok's levels of 1, 1, 2, 4 ... `num_tokens / 2` tokens.

    Raises:
        ValueError: If `num_tokens` is not a power of two.
    """
    if num_tokens < 1 or num_tokens & (num_tokens - 1):
        raise ValueError(f"num_tokens is {num_tokens}, expected a power of two")
    sizes = [1, *(2**level for level in range(num_tokens.bit_length() - 1))]
    return tuple(LevelSpec(num_tokens=size, dim=dim, vocab_size=vocab_size) for size in sizes)


def _config(size: str, layout: str) -> dict[str, Any]:
    depth, num_heads, dim = SIZES[size]
    specs = specs_to_json(doubling_specs(128, dim=8, vocab_size=8192))
    return {"level_specs": specs, "dim": dim, "depth": depth, "num_heads": num_heads, "layout": layout}


#: Guidance scale of LlamaGen's published results, by size.
_GUIDANCE = {"b": 2.0, "l": 2.0, "xl": 1.75, "xxl": 1.75, "3b": 1.65}


def grid_specs(side: int, *, dim: int, vocab_size: int) -> tuple[LevelSpec, ...]:
    """Return the one level of a map of `side` x `side` tokens."""
    return (LevelSpec(side**2, (side, side), dim, vocab_size),)


def _llamagen(size: str, side: int) -> Preset:
    depth, num_heads, dim = _LLAMAGEN_SIZES[size]
    config = {
        "level_specs": specs_to_json(grid_specs(side, dim=8, vocab_size=16384)),
        "dim": dim,
        "depth": depth,
        "num_heads": num_heads,
        "layout": "token",
        "rotary": "grid",
    }
    scale = f", sampled with guidance_scale {_GUIDANCE[size]}" if size in _GUIDANCE else ""
    return Preset(
        "LevelAR", config, f"LlamaGen, arXiv:2406.06525, GPT-{size.upper()} on VQ-16 at {16 * side} pixels{scale}"
    )


def _llamagen_by_text(side: int) -> Preset:
    """Return the published size on texts of up to 120 tokens, with features of FLAN-T5 XL."""
    config = {**_llamagen("xl", side).config, "num_classes": None, "text_shape": [120, 2048]}
    return Preset(
        "LevelAR",
        config,
        f"LlamaGen, arXiv:2406.06525, GPT-XL by text on VQ-16 at {16 * side} pixels, guidance_scale 7.5",
    )


_TINY = {
    "level_specs": specs_to_json(doubling_specs(16, dim=8, vocab_size=512)),
    "num_classes": 10,
    "dim": 160,
    "depth": 4,
    "num_heads": 5,
}

PRESETS: dict[str, Preset] = {
    "har-tiny": Preset("LevelAR", _TINY, "10 classes, 16 tokens: trains on a CPU in minutes"),
    **{
        f"har-{size}": Preset(
            "LevelAR", _config(size, "level"), f"ResTok, arXiv:2601.03955, GPT-{size.upper()} with HAR"
        )
        for size in SIZES
    },
    **{
        f"ar-{size}": Preset(
            "LevelAR", _config(size, "token"), f"ResTok, arXiv:2601.03955, GPT-{size.upper()} token by token"
        )
        for size in SIZES
    },
    **{f"llamagen-{size}-{side**2}": _llamagen(size, side) for size in _LLAMAGEN_SIZES for side in (16, 24)},
    **{f"llamagen-xl-text-{side**2}": _llamagen_by_text(side) for side in (16, 32)},
}
