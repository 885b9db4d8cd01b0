"""Official checkpoints of Block Transformer <-> `BlockTransformer`, for embedders that look up and GPT-NeoX as token decoder.

These are all published models. What differs besides names: the fused projection of attention is packed per head there, and by queries, keys
and values here; rotations turn channels that are half a rotary part apart there, and adjacent ones here; convolutions over the ids of a
block are linear layers here. A table of the block decoder that no program reads is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.restok_config import Flags
from hiergen.convert.state_dicts import Entry, count_of, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.generators.sequences.block.model import BlockTransformer
from hiergen.nn.blocks.placed import PlacedAttention

#: A tensor that all models of the family have.
ANCHOR = "token_decoder.expansion_layer.weight"
_TABLE, _PROJECTION = "embedder.embeddings.weight", "embedder.projection_layer.weight"
#: Tensors that nothing reads, by the ends of their names; the last three were buffers of older programs.
_UNUSED = (
    "block_decoder.gpt_neox.embed_in.weight",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
)
_LAYER_NAMES = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.qkv": "attention.query_key_value",
    "attention.out": "attention.dense",
    "mlp.fc1": "mlp.dense_h_to_4h",
    "mlp.fc2": "mlp.dense_4h_to_h",
}
_NAMES = {
    "embed_block.table": "embedder.embeddings",
    "embed_block.projection": "embedder.projection_layer",
    "norm": "block_decoder.gpt_neox.final_layer_norm",
    "decode_ids.table": "token_decoder.gpt_neox.embed_in",
    "decode_ids.norm": "token_decoder.gpt_neox.final_layer_norm",
    "decode_ids.expansion": "token_decoder.expansion_layer",
    "decode_ids.head": "token_decoder.embed_out",
}
_STACKS = {"blocks": "block_decoder.gpt_neox.layers", "decode_ids.blocks": "token_decoder.gpt_neox.layers"}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> BlockTransformer:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: For what shapes do not tell: `num_heads` and `token_heads` (else heads of 32, 64 or 128 channels, as published),
            `token_decoder`, "prefix" or "summation" (else "summation" where a context becomes as many vectors as a block has ids), and
            `generation_positions` (else "trained").

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it.

    Source:
        Block Transformer, arXiv:2406.02657.
    """
    tensors = {
        name: tensor
        for name, tensor in unwrap_state_dict(state_dict, anchor=ANCHOR).items()
        if not name.endswith(_UNUSED)
    }
    with torch.device("meta"):
        model = BlockTransformer(**_settings(tensors, Flags(config or {})))
    entries = _entries(model)
    for entry in entries:
        name = entry.official[0]
        if name in tensors and tuple(tensors[name].shape) == entry.shape:
            tensors[name] = _to_ours(model, entry.name, tensors[name])
    # Shapes were checked above by changing only what fits; `fill_entries` names what does not.
    ours = [Entry(entry.name, entry.official, _our_shape(entry)) for entry in entries]
    fill_entries(model, tensors, ours)
    return model.eval()


def to_official(model: BlockTransformer) -> dict[str, Tensor]:
    """Return the state dict with official names, without the table that nothing reads; tensors may share memory with the model.

    Raises:
        ValueError: If the model is of a kind that no published one is.
    """
    entries = _entries(model)
    found = take_entries(model, [Entry(entry.name, entry.official, _our_shape(entry)) for entry in entries])
    return {entry.official[0]: _to_theirs(model, entry, found[entry.official[0]]) for entry in entries}


def official_name(name: str) -> str:
    """Return the official name of a parameter of ours.

    Raises:
        ValueError: If no published model has it.
    """
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    for ours, official in _STACKS.items():
        index, _, part = stem.removeprefix(f"{ours}.").partition(".")
        if stem.startswith(f"{ours}.") and part in _LAYER_NAMES:
            return f"{official}.{index}.{_LAYER_NAMES[part]}.{kind}"
    raise ValueError(
        f"the parameter {name!r} is of no published model, expected an embedder that looks up and NeoX blocks"
    )


def _entries(model: BlockTransformer) -> list[Entry]:
    return [
        Entry(name, (official_name(name),), _their_shape(model, name, tuple(tensor.shape)))
        for name, tensor in model.state_dict().items()
    ]


def _their_shape(model: BlockTransformer, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name == "embed_block.projection.weight":
        return (shape[0], shape[1] // model.block_length, model.block_length)
    return (*shape, 1) if name == "decode_ids.expansion.weight" else shape


def _our_shape(entry: Entry) -> tuple[int, ...]:
    if entry.name == "embed_block.projection.weight":
        return (entry.shape[0], entry.shape[1] * entry.shape[2])
    return entry.shape[:2] if entry.name == "decode_ids.expansion.weight" else entry.shape


def _to_ours(model: BlockTransformer, name: str, value: Tensor) -> Tensor:
    if name == "embed_block.projection.weight":
        return value.transpose(1, 2).flatten(1)
    if name == "decode_ids.expansion.weight":
        return value[..., 0]
    if ".qkv." not in name:
        return value
    heads, order = _heads(model, name)
    parts = value.unflatten(0, (heads, 3, -1)).transpose(0, 1)
    return torch.cat((parts[:2, :, order], parts[2:])).flatten(0, 2)


def _to_theirs(model: BlockTransformer, entry: Entry, value: Tensor) -> Tensor:
    if entry.name == "embed_block.projection.weight":
        return value.unflatten(1, (entry.shape[2], entry.shape[1])).transpose(1, 2)
    if ".qkv." not in entry.name:
        return value.reshape(entry.shape)
    heads, order = _heads(model, entry.name)
    parts = value.unflatten(0, (3, heads, -1))
    return torch.cat((parts[:2, :, order.argsort()], parts[2:])).transpose(0, 1).flatten(0, 2)


def _heads(model: BlockTransformer, name: str) -> tuple[int, Tensor]:
    """Return the heads of a fused projection, and the official place of each of our channels of a head."""
    attention = model.get_submodule(name.rpartition(".qkv.")[0])
    assert isinstance(attention, PlacedAttention)
    order = torch.arange(attention.head_dim)
    order[: attention.rotary_dim] = order[: attention.rotary_dim].unflatten(0, (2, -1)).T.flatten()
    return attention.sizes[0], order


def _settings(tensors: Mapping[str, Tensor], flags: Flags) -> dict[str, Any]:
    vocab_size, width = shape_of(tensors, _TABLE, 2)
    has_projection = _PROJECTION in tensors
    dim = shape_of(tensors, "block_decoder.gpt_neox.final_layer_norm.weight", 1)[0]
    token_dim = shape_of(tensors, "token_decoder.gpt_neox.embed_in.weight", 2)[1]
    length = shape_of(tensors, _PROJECTION, 3)[2] if has_projection else dim // width
    vectors = shape_of(tensors, ANCHOR, 3)[0] // token_dim
    kind = flags.get("token_decoder", "summation" if vectors == length else "prefix")
    return {
        "vocab_size": vocab_size,
        "block_length": length,
        "dim": dim,
        "depth": count_of(tensors, _STACKS["blocks"]),
        "num_heads": int(flags.get("num_heads", published_heads(dim))),
        "token_dim": token_dim,
        "token_depth": count_of(tensors, _STACKS["decode_ids.blocks"]),
        "token_heads": int(flags.get("token_heads", published_heads(token_dim))),
        "embedder": "lookup_projection" if has_projection else "lookup",
        "embedder_dim": width,
        "token_decoder": kind,
        "prefix_length": vectors if kind == "prefix" else 1,
        "first_block": "context",
        "generation_positions": flags.get("generation_positions", "trained"),
    }


def published_heads(dim: int) -> int:
    """Return the attention heads of published models of a width, at least one."""
    return max(dim // (32 if dim <= 256 else 64 if dim <= 1536 else 128), 1)
