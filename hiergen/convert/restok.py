"""Official checkpoints of ResTok <-> `ResTok`.

Only names and shapes differ: every one of our parameters is one official tensor reshaped, or several stacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.restok_config import inference_tensors, read_config
from hiergen.convert.state_dicts import Entry, fill_entries, take_entries
from hiergen.tokenizers.restok.model import ResTok

#: Our name to the official one, inside a transformer block.
_BLOCK_NAMES = {
    "attention.query_bias": "attn.q_bias",
    "attention.value_bias": "attn.v_bias",
    "attention.query_norm": "attn.q_norm",
    "attention.key_norm": "attn.k_norm",
    "attention.out": "attn.proj",
    "attention.qkv": "attn.qkv",
    "scale1": "gamma_1",
    "scale2": "gamma_2",
}

#: Our names outside the blocks to the official ones; a `#` stands for a level, `*` for weight and bias.
_NAMES = {
    "quantizer.codebook": "quantize.embedding.weight",
    "decoder.image_mask_token": "decoder.mask_token",
    "decoder.feature_mask_token": "decoder.feat_mask_token",
    "decoder.latent_mask_token": "decoder.latent_mask_token",
    "to_code.levels.#.*": "encoder.conv_out.#.*",
    "decoder.embed.levels.#.*": "decoder.decoder_embed.#.*",
    "decoder.out.*": "decoder.ffn.*",
    "encoder.norm_in.*": "encoder.ln_pre.*",
    "encoder.norm_out.*": "encoder.ln_post.*",
    "decoder.norm_in.*": "decoder.ln_pre.*",
    "decoder.norm_out.*": "decoder.ln_post.*",
    "encoder.patch_embed.*": "encoder.patch_embed.*",
}

#: Tables with one row per level here, lists of `[1, D]` tensors there.
_STACKED = {
    "encoder.level_embedding": "encoder.level_embedding",
    "encoder.latent_level_embedding": "encoder.latent_token_level_embedding",
    "decoder.latent_level_embedding": "decoder.latent_token_level_embedding",
}


def from_official(
    state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> ResTok:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Sizes are read from the tensors. No tensor tells the image size: it comes from `image_size`, else from `config`
    (`crop_size` or `image_size`), else it is 256. Switches that leave no trace in the tensors (residuals, latent hierarchy) come
    from `config` and are otherwise those of the published model.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Tensors that only training uses (the teacher and the projections to it, the discriminator, the
            perceptual loss) are left out; the decoder's feature token is kept only where `config` switches decoder supervision on.
        config: The official configuration as nested dictionaries; keys are searched at any depth.
        image_size: Height and width of the images in pixels.

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it; if the configuration
            contradicts the tensors or asks for what the official program cannot do.
    """
    tensors = inference_tensors(state_dict)
    values = read_config(tensors, config or {}, image_size)
    with torch.device("meta"):
        model = ResTok(**values)
    entries = list(_entries(model))
    fill_entries(model, tensors, entries)
    return model.eval()


def to_official(model: ResTok) -> dict[str, Tensor]:
    """Return the state dict with official names and shapes. The tensors share memory with the model.

    Raises:
        ValueError: If the model has a corrected part, which the official program would compute differently.
    """
    layout = model.layout
    for name, value in (("projection", "reinterpreted"), ("merge", "even"), ("cnn_shortcut", "branch")):
        if getattr(layout, name) != value:
            raise ValueError(f"{name} is {getattr(layout, name)!r}; the official program knows only {value!r}")
    return take_entries(model, list(_entries(model)))


def _entries(model: ResTok) -> Iterator[Entry]:
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name in _STACKED:
            names = tuple(f"{_STACKED[name]}.{index}" for index in range(shape[0]))
            yield Entry(name, names, (1, shape[1]))
        elif name.endswith("_mask_token"):
            yield Entry(name, (_NAMES[name],), (1, 1, *shape))
        elif name.startswith("to_code.") and name.endswith("weight"):
            yield Entry(name, (_official_name(name, model),), (*shape, 1, 1))
        else:
            yield Entry(name, (_official_name(name, model),), shape)


def _official_name(name: str, model: ResTok) -> str:
    if name.startswith(("pixel_encoder.", "pixel_decoder.")):
        return official_convnet_name(name)
    block = re.match(r"((?:encoder|decoder)\.blocks\.\d+)\.(.*)", name)
    if block:
        return f"{block[1]}.{_replace_prefix(block[2], _BLOCK_NAMES)}"
    level = re.search(r"\.levels\.(\d+)\.", name)
    pattern = re.sub(r"\.levels\.\d+\.", ".levels.#.", name)
    pattern, kind = (
        (pattern[: pattern.rindex(".")] + ".*", name.rsplit(".")[-1]) if pattern not in _NAMES else (pattern, "")
    )
    official = _NAMES[pattern].replace("*", kind)
    if level:
        official = official.replace("#", level[1]) if model.layout.multi_projection else official.replace("#.", "")
    if not model.layout.cnn_encoder:
        official = official.replace("encoder.patch_embed.", "encoder.patch_embed.proj.")
    return official


def official_convnet_name(name: str) -> str:
    """Return the official name of a tensor of a `ConvEncoder` or `ConvDecoder`."""
    name = re.sub(r"\.(down|up)\.(\d+)\.(\d+)\.", r".\1.\2.block.\3.", name)
    name = name.replace(".shortcut.", ".nin_shortcut.")
    # Our list of upsampling convolutions starts at the second finest resolution, the finest has none.
    return re.sub(r"\.upsample\.(\d+)\.", lambda match: f".up.{int(match[1]) + 1}.upsample_conv.", name)


def _replace_prefix(name: str, table: Mapping[str, str]) -> str:
    for ours, official in table.items():
        if name == ours or name.startswith(f"{ours}."):
            return official + name.removeprefix(ours)
    return name
