"""Official checkpoints of RAR <-> `RandomOrderAR`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.restok_config import Flags
from hiergen.convert.state_dicts import Entry, count_of, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.generators.random_order.model import RandomOrderAR
from hiergen.pyramid import LevelSpec, specs_to_json

#: Rows of the table of positions that no token ever reads, beyond the tokens.
_SPARE_ROWS = 1024

_TABLE = "embeddings.weight"
_NAMES = {
    "cls_token": "cls_token",
    "position_embedding": "pos_embed",
    "target_embedding": "target_aware_pos_embed",
    "step_embedding": "timesteps_embeddings",
    "token_embedding.weight": f"{_TABLE}.tokens",
    "class_embedding.weight": f"{_TABLE}.classes",
    "norm_out.modulation.weight": "adaln_before_head.adaLN_modulation.1.weight",
    "norm_out.modulation.bias": "adaln_before_head.adaLN_modulation.1.bias",
    "head.weight": "lm_head.weight",
    "head.bias": "lm_head.bias",
}
_BLOCK_NAMES = {
    "modulation": "adaLN_modulation.1",
    "attn.query_norm": "attn.q_norm",
    "attn.key_norm": "attn.k_norm",
}
#: Parameters that have one dimension more there.
_BATCHED = ("cls_token", "position_embedding", "target_embedding", "step_embedding")


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> RandomOrderAR:
    """Return the generator that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, nested or flat, for what shapes do not tell: `image_seq_len` (else 1024 less than there are
            positions) and `token_size`, the channels of a code (else 256).

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it.

    Source:
        RAR, arXiv:2411.00776.
    """
    tensors = unwrap_state_dict(state_dict, anchor="target_aware_pos_embed")
    settings = _settings(tensors, Flags(config or {}))
    with torch.device("meta"):
        model = RandomOrderAR(**settings)
    whole = tensors.pop(_TABLE)
    tokens = settings["level_specs"][0]["vocab_size"] + 1
    split = {f"{_TABLE}.tokens": whole[:tokens], f"{_TABLE}.classes": whole[tokens:]}
    fill_entries(model, {**tensors, **split}, _entries(model))
    return model.eval()


def to_official(model: RandomOrderAR) -> dict[str, Tensor]:
    """Return the state dict with official names; only the table of embeddings does not share memory with the model."""
    found = take_entries(model, _entries(model))
    found[_TABLE] = torch.cat([found.pop(f"{_TABLE}.{part}") for part in ("tokens", "classes")])
    return found


def _settings(tensors: Mapping[str, Tensor], flags: Flags) -> dict[str, Any]:
    rows, dim = shape_of(tensors, _TABLE, 2)
    vocab_size = shape_of(tensors, "lm_head.weight", 2)[0]
    positions = shape_of(tensors, "pos_embed", 3)[1]
    name = "blocks.0.attn.q_norm.weight"
    (head_dim,) = shape_of(tensors, name, 1)
    if dim % head_dim:
        raise ValueError(f"tensor {name!r} has {head_dim} channels, expected a divisor of the width, {dim}")
    num_tokens = int(flags.get("image_seq_len", positions - _SPARE_ROWS))
    if num_tokens < 1:
        raise ValueError(f"tensor 'pos_embed' has {positions} rows, expected more than {_SPARE_ROWS}, or image_seq_len")
    side = math.isqrt(num_tokens)
    grid = (side, side) if side**2 == num_tokens else None
    spec = LevelSpec(num_tokens, grid, dim=int(flags.get("token_size", 256)), vocab_size=vocab_size)
    return {
        "level_specs": specs_to_json([spec]),
        "num_classes": rows - vocab_size - 2,
        "dim": dim,
        "depth": count_of(tensors, "blocks"),
        "num_heads": dim // head_dim,
        "ffn_dim": shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0],
        "num_position_rows": positions,
        "num_step_rows": shape_of(tensors, "timesteps_embeddings", 3)[1],
    }


def _entries(model: RandomOrderAR) -> list[Entry]:
    entries = []
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        entries.append(Entry(name, (_official_name(name),), (1, *shape) if name in _BATCHED else shape))
    return entries


def _official_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    block = re.fullmatch(r"(blocks\.\d+)\.(.*)\.(weight|bias)", name)
    assert block is not None
    return f"{block[1]}.{_BLOCK_NAMES.get(block[2], block[2])}.{block[3]}"
