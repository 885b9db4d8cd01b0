"""Official checkpoints of ResTok's generators (HAR, and its token-by-token variant) <-> `LevelAR`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.state_dicts import count_of, fill_model, shape_of, unwrap_state_dict
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.pyramid import specs_to_json

#: LlamaGen's attention heads, which no tensor shape tells, by name and by channels.
_HEADS = {"B": 12, "L": 16, "XL": 20, "XXL": 24, "XXXL": 40, "1B": 32, "3B": 32, "7B": 32}
_HEADS_BY_DIM = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2560: 40, 2048: 32, 3200: 32, 4096: 32}

_NAMES = {
    "cls_embedding.embedding_table.weight": "class_embedding.weight",
    "cls_embedding.cap_proj.fc1.weight": "class_embedding.fc1.weight",
    "cls_embedding.cap_proj.fc2.weight": "class_embedding.fc2.weight",
    "cls_embedding.uncond_embedding": "class_embedding.null_features",
    "tok_embeddings.weight": "token_embedding.weight",
    "spe_tok_embeddings.special_embeddings.weight": "special_embedding.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_BLOCK_NAMES = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wqkv.weight": "attention.qkv.weight",
    "attention.wo.weight": "attention.out.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn.gate.weight",
    "feed_forward.w3.weight": "ffn.up.weight",
    "feed_forward.w2.weight": "ffn.down.weight",
}
#: A tensor that all class-conditional generators have.
ANCHOR = "cls_embedding.embedding_table.weight"
#: A tensor that all text-conditional ones have.
TEXT_ANCHOR = "cls_embedding.uncond_embedding"
_SPECIAL = "spe_tok_embeddings.special_embeddings.weight"


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> LevelAR:
    """Return a `LevelAR` in eval mode that holds official weights.

    Args:
        state_dict: Official tensors, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, nested or flat, for what shapes do not tell: `n_head` or `gpt_model` (else
            LlamaGen's table, else heads of 64 channels), `num_latent_tokens` (else from the special embeddings, else 128),
            `ar_token_num` (else 4) and `token_size` (else 8).

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape, naming it.

    Source:
        ResTok, arXiv:2601.03955: `llamagen_l_c2i_restok_l_128.r256_in1k`.
    """
    tensors = unwrap_state_dict(state_dict, anchor=ANCHOR)
    return build(_model_settings(tensors, {} if config is None else config), tensors)


def build(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LevelAR:
    """Return the model of these constructor arguments in eval mode, filled with official tensors.

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape, naming it.
    """
    with torch.device("meta"):
        model = LevelAR(**settings)
    names = _official_names(model)
    ours = {official: name for name, official in names.items()}
    fill_model(model, {ours.get(name, name): tensor for name, tensor in tensors.items()}, names=names)
    return model.eval()


def to_official(model: LevelAR) -> dict[str, Tensor]:
    """Return the weights of a `LevelAR` under their official names."""
    names = _official_names(model)
    return {names[name]: tensor.detach() for name, tensor in model.state_dict().items()}


def _official_names(model: LevelAR) -> dict[str, str]:
    """Return the official name of each of our tensors."""
    names = {ours: official for official, ours in _NAMES.items()}
    for layer in range(len(model.blocks)):
        names |= {f"blocks.{layer}.{ours}": f"layers.{layer}.{official}" for official, ours in _BLOCK_NAMES.items()}
    held = model.state_dict().keys()
    return {ours: official for ours, official in names.items() if ours in held}


def _model_settings(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    vocab_size = shape_of(tensors, "tok_embeddings.weight", 2)[0]
    has_special = _SPECIAL in tensors
    num_special = len(tensors[_SPECIAL]) if has_special else 0
    num_tokens = _find(config, "num_latent_tokens")
    if num_tokens is None:
        num_tokens = num_special + 1 if has_special else 128
    num_ar_tokens = _find(config, "ar_token_num")
    code_dim = _find(config, "token_size")
    specs = doubling_specs(int(num_tokens), dim=8 if code_dim is None else int(code_dim), vocab_size=vocab_size)
    return {
        "level_specs": specs_to_json(specs),
        **read_sizes(tensors, config),
        "layout": "level" if has_special else "token",
        "num_ar_tokens": 4 if num_ar_tokens is None else int(num_ar_tokens),
        "num_special_tokens": num_special,
    }


def read_sizes(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of `LevelAR` that are sizes of LlamaGen's transformer.

    Args:
        tensors: Official tensors.
        config: The official configuration, for the heads: `n_head` or `gpt_model`, else LlamaGen's table by channels.
    """
    dim = shape_of(tensors, "tok_embeddings.weight", 2)[1]
    is_of_text = TEXT_ANCHOR in tensors
    return {
        "num_classes": None if is_of_text else shape_of(tensors, ANCHOR, 2)[0] - 1,
        "text_shape": list(shape_of(tensors, TEXT_ANCHOR, 2)) if is_of_text else None,
        "dim": dim,
        "depth": count_of(tensors, "layers"),
        "num_heads": _num_heads(dim, config),
        "ffn_dim": shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
    }


def _num_heads(dim: int, config: Mapping[str, Any]) -> int:
    num_heads = _find(config, "n_head")
    if num_heads is not None:
        return int(num_heads)
    name = _find(config, "gpt_model")
    if name is not None:
        size = str(name).removeprefix("GPT-").upper()
        if size not in _HEADS:
            raise ValueError(f"gpt_model is {name!r}, expected one of {', '.join(f'GPT-{known}' for known in _HEADS)}")
        return _HEADS[size]
    if dim in _HEADS_BY_DIM:
        return _HEADS_BY_DIM[dim]
    if dim % 64:
        raise ValueError(f"the heads of a model with {dim} channels are not known: give config['n_head']")
    return dim // 64


def _find(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key at any depth of a nested config, the outermost first; None if there is none."""
    if config.get(key) is not None:
        return config[key]
    for value in config.values():
        found = _find(value, key) if isinstance(value, Mapping) else None
        if found is not None:
            return found
    return None
