"""Official checkpoints of TiTok's MaskGIT generators, of both forms, <-> `MaskedIds`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.restok_config import Flags
from hiergen.convert.state_dicts import Entry, count_of, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.pyramid import LevelSpec, specs_to_json

#: The published generators' attention heads, which no tensor shape tells.
_HEADS = 16

#: The form "post_norm": our names inside a block to the official ones; several are stacked.
_BERT_BLOCK = {
    "attn.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attn.proj": ("attention.output.dense",),
    "norm1": ("attention.output.LayerNorm",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
    "norm2": ("output.LayerNorm",),
}
_BERT_NAMES = {
    "transformer.position_embedding": "embeddings.position_embeddings.weight",
    "transformer.type_embedding": "embeddings.token_type_embeddings.weight",
    "transformer.norm_in.weight": "embeddings.LayerNorm.weight",
    "transformer.norm_in.bias": "embeddings.LayerNorm.bias",
}
_TABLES = {"post_norm": "embeddings.word_embeddings.weight", "skip": "embeddings.weight"}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> MaskedIds:
    """Return the generator that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, nested or flat, for what shapes do not tell: `num_attention_heads` (else 16) and `token_size`,
            the channels of a code (else 12).

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it.

    Source:
        TiTok, arXiv:2406.07550.
    """
    tensors = unwrap_state_dict(state_dict, anchor="lm_head.weight")
    # Old versions of transformers stored the numbers 0, 1, 2, ...
    tensors.pop("embeddings.position_ids", None)
    form = "post_norm" if _TABLES["post_norm"] in tensors else "skip"
    with torch.device("meta"):
        model = MaskedIds(**_settings(tensors, Flags(config or {}), form))
    fill_entries(model, _split_table(tensors, _TABLES[form], model.vocab_size), _entries(model, form))
    return model.eval()


def to_official(model: MaskedIds) -> dict[str, Tensor]:
    """Return the state dict with official names; only the table of embeddings does not share memory with the model."""
    form = model.config["blocks"]
    found = take_entries(model, _entries(model, form))
    found[_TABLES[form]] = torch.cat([found.pop(f"{_TABLES[form]}.{part}") for part in ("tokens", "classes")])
    prefix = "model." if form == "post_norm" else ""
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def _split_table(tensors: Mapping[str, Tensor], table: str, vocab_size: int) -> dict[str, Tensor]:
    """Return the tensors with the table of embeddings in two: ids and the mask, classes and no class."""
    rest = {name: tensor for name, tensor in tensors.items() if name != table}
    whole = tensors[table]
    return {**rest, f"{table}.tokens": whole[: vocab_size + 1], f"{table}.classes": whole[vocab_size + 1 :]}


def _settings(tensors: Mapping[str, Tensor], flags: Flags, form: str) -> dict[str, Any]:
    rows, dim = shape_of(tensors, _TABLES[form], 2)
    vocab_size = shape_of(tensors, "lm_head.weight", 2)[0]
    if form == "post_norm":
        places = shape_of(tensors, "embeddings.position_embeddings.weight", 2)[0]
        depth = count_of(tensors, "encoder.layer")
        hidden = shape_of(tensors, "encoder.layer.0.intermediate.dense.weight", 2)[0]
    else:
        places = shape_of(tensors, "pos_embed", 3)[1]
        depth = 2 * count_of(tensors, "in_blocks")
        hidden = shape_of(tensors, "mid_block.mlp.fc1.weight", 2)[0]
    spec = LevelSpec(places - 1, dim=int(flags.get("token_size", 12)), vocab_size=vocab_size)
    return {
        "level_specs": specs_to_json([spec]),
        "num_classes": rows - vocab_size - 2,
        "blocks": form,
        "dim": dim,
        "depth": depth,
        "num_heads": int(flags.get("num_attention_heads", _HEADS)),
        "mlp_ratio": hidden / dim,
        # The official program uses none in the second form.
        "dropout": 0.1 if form == "post_norm" else 0.0,
    }


def _entries(model: MaskedIds, form: str) -> list[Entry]:
    entries = []
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        official = _official_names(name, form)
        if official == ("pos_embed",):
            shape = (1, *shape)
        entries.append(Entry(name, official, (shape[0] // len(official), *shape[1:])))
    return entries


def _official_names(name: str, form: str) -> tuple[str, ...]:
    if name in ("token_embedding.weight", "class_embedding.weight"):
        return (f"{_TABLES[form]}.{'tokens' if name.startswith('token') else 'classes'}",)
    if name.startswith("head."):
        return (f"lm_{name}",)
    if form == "post_norm":
        if name in _BERT_NAMES:
            return (_BERT_NAMES[name],)
        _, _, layer, rest = name.split(".", 3)
        part, kind = rest.rsplit(".", 1)
        return tuple(f"encoder.layer.{layer}.{official}.{kind}" for official in _BERT_BLOCK[part])
    name = name.removeprefix("transformer.").replace("norm_out.", "norm.")
    name = re.sub(r"^skips\.(\d+)\.", r"out_blocks.\1.skip_linear.", name)
    return ("pos_embed" if name == "position_embedding" else name,)
