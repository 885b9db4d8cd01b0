"""Presets of `BlockTransformer`: the published sizes and ablations on sub-word ids, and tiny ones of bytes and of image tokens."""

from __future__ import annotations

from typing import Any

from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import Preset

_PAPER = "Block Transformer, arXiv:2406.02657"

#: Depth and width of both decoders and heads, by millions of parameters in transformer layers.
SIZES = {
    "5m": (3, 256, 8),
    "19m": (3, 512, 8),
    "85m": (6, 768, 12),
    "302m": (12, 1024, 16),
    "805m": (8, 2048, 16),
    "1200m": (12, 2048, 16),
}


def _published(depth: int, dim: int, num_heads: int, **changes: Any) -> dict[str, Any]:
    sizes = {"depth": depth, "dim": dim, "num_heads": num_heads}
    return {"vocab_size": 50304, "first_block": "context", **sizes, **changes}


_85M = SIZES["85m"]
_CLS: dict[str, Any] = {"embedder": "roberta_cls"}
#: What differs from the model of 85 M parameters, or another model as a whole.
_ABLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "block-85m-prefix1": (_published(*_85M, prefix_length=1), "prefix of 1"),
    "block-85m-roberta": (_published(*_85M, prefix_length=1, embedder="roberta"), "RoBERTa as embedder"),
    "block-85m-summation": (
        _published(*_85M, **_CLS, token_decoder="summation"),
        "begin tokens of RoBERTa as embedder, context added",
    ),
    "block-85m-cross": (
        _published(*_85M, **_CLS, token_decoder="cross_attention"),
        "begin tokens of RoBERTa as embedder, T5 as token decoder",
    ),
    "block-megabyte-5m": (
        _published(5, 256, 8, token_dim=128, token_depth=4, token_heads=4, token_decoder="summation"),
        "sizes of MEGABYTE",
    ),
    "block-megabyte-85m": (
        _published(11, 768, 12, token_dim=512, token_depth=4, token_heads=8, token_decoder="summation"),
        "sizes of MEGABYTE",
    ),
    "block-85m-uptrained": (
        _published(*_85M, embedder="lookup_projection", embedder_dim=768),
        "made from a vanilla model",
    ),
    "block-85m-single": (_published(*_85M, prefix_length=1, block_length=1), "blocks of one token"),
}

_TINY = {"dim": 128, "depth": 3, "num_heads": 4, "token_dim": 96, "token_depth": 3, "token_heads": 4}

PRESETS: dict[str, Preset] = {
    **{
        f"block-{name}": Preset("BlockTransformer", _published(*sizes), f"{_PAPER}, main model of {name} in its layers")
        for name, sizes in SIZES.items()
    },
    **{name: Preset("BlockTransformer", config, f"{_PAPER}: {what}") for name, (config, what) in _ABLATIONS.items()},
    "block-tiny": Preset("BlockTransformer", {**_TINY, "begin_id": 254}, "ours: bytes; trains on a CPU in minutes"),
    "block-tiny-16": Preset(
        "BlockTransformer",
        {
            **_TINY,
            "level_specs": specs_to_json([LevelSpec(16, (4, 4), dim=8, vocab_size=256)]),
            "num_classes": 10,
        },
        "ours: a block is a row of an image's tokens; the tokens of maskgit-vq-tiny",
    ),
}
