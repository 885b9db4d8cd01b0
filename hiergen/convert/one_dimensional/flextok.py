"""Official checkpoints of FlexTok <-> `FlexTok`. Its weights are for research only; nothing here holds any of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.state_dicts import Entry, count_of, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.tokenizers.flextok.model import FlexTok

#: What its authors call the terms of the released weights, and what they come to.
LICENSE = (
    "Apple Machine Learning Research Model license: research only, no product development, no commercial use; "
    "what is made of the weights, converted files too, stays under it"
)

_ANCHOR = "encoder.module_dict.enc_register_module.registers"
_NAMES = {
    "encoder.patch_embed.proj": "enc_patch_emb.patch_proj",
    "encoder.patch_embed.position_table.value": "enc_posemb_module.posembs",
    "encoder.registers": "enc_register_module.registers",
    "encoder.to_codes": "enc_to_latents.proj",
    "decoder.embed": "dec_from_latents.proj",
    "decoder.register_positions": "dec_registers_posemb_module.posembs",
    "decoder.dropped_token": "dec_nested_dropout.dropout_mask_token",
    "decoder.null_token": "dec_latent_dropout.nullcond",
    "decoder.patch_embed.proj": "dec_noise_patch_emb.patch_proj",
    "decoder.patch_embed.position_table.value": "dec_patches_posemb_module.posembs",
    "decoder.time_embed.linear1": "dec_time_embedder.mlp.0",
    "decoder.time_embed.linear2": "dec_time_embedder.mlp.2",
    "decoder.final_modulation": "dec_to_patches.adaLN_modulation.1",
    "decoder.final_linear": "dec_to_patches.proj",
}
_BLOCK_NAMES = {
    "attention.qkv.weight": ("attn.wq.weight", "attn.wk.weight", "attn.wv.weight"),
    "attention.proj.weight": ("attn.proj.weight",),
    "mlp.gate.weight": ("mlp.fc1.weight",),
    "mlp.up.weight": ("mlp.fc3.weight",),
    "mlp.down.weight": ("mlp.fc2.weight",),
    "modulation.weight": ("adaLN_modulation.1.weight",),
    "modulation.bias": ("adaLN_modulation.1.bias",),
}
#: How the official program calls the distributions of the lengths of prefixes.
_LENGTHS = {"uniform": "uniform", "pow2": "powers", "uniform_pow2": "uniform_powers"}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> FlexTok:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, the `config.json` beside the weights, nested in any way; values are found by their keys and
            read as data. What no tensor tells must be there: `levels`, `mask_mode`, `max_timestep`, `sample_posterior` and
            `scaling_factor`. Where they are there, `head_dim` (else 64), `norm_num_groups` (else 32), `size_sampling_mode` and
            `dropout_prob` are read, and `patch_sizes`, `n_max` and `adaLN_expansion` compared with the tensors.

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it; or if the configuration lacks
            a value, holds two, one that is not known, or one that contradicts the tensors.

    Source:
        FlexTok, arXiv:2502.13967.
    """
    tensors = unwrap_state_dict(state_dict, anchor=_ANCHOR)
    with torch.device("meta"):
        model = FlexTok(**_settings(tensors, config or {}))
    fill_entries(model, tensors, _entries(model))
    return model.eval()


def to_official(model: FlexTok) -> dict[str, Tensor]:
    """Return the state dict with official names and shapes. The tensors share memory with the model.

    Raises:
        ValueError: If the model works on pixels, which the official program does not.
    """
    if model.vae is None:
        raise ValueError("autoencoder is None; the official program knows only models on an autoencoder's latents")
    return take_entries(model, _entries(model))


def _settings(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `FlexTok`."""
    modes = {str(mode) for _, mode in _search(config, ("mask_mode",), "")}
    if modes != {"causal_last", "full"}:
        raise ValueError(
            f"mask_mode is {sorted(modes) or 'missing'} in the configuration, expected 'causal_last' of the encoder and 'full' of the decoder"
        )
    autoencoder = _autoencoder(tensors, config)
    e, d = "encoder.module_dict.", "decoder.module_dict."
    num_registers, _ = shape_of(tensors, _ANCHOR, 2)
    _, patch_dim = shape_of(tensors, f"{e}enc_patch_emb.patch_proj.weight", 2)
    patch_size = math.isqrt(patch_dim // autoencoder["latent_channels"])
    side = shape_of(tensors, f"{e}enc_posemb_module.posembs", 4)[-1]
    width = shape_of(tensors, f"{d}dec_from_latents.proj.weight", 2)[0]
    modulation = shape_of(tensors, f"{d}dec_transformer.blocks.0.adaLN_modulation.1.weight", 2)[0]
    for key, found in (
        ("patch_sizes", [patch_size, patch_size]),
        ("n_max", num_registers),
        ("adaLN_expansion", modulation // (6 * width)),
    ):
        stated = _value(config, key, default=found)
        if (list(stated) if isinstance(stated, list | tuple) else stated) != found:
            raise ValueError(f"{key} is {stated!r} in the configuration, but the tensors say {found!r}")
    lengths = _value(config, "size_sampling_mode", default="uniform_pow2")
    if lengths not in _LENGTHS:
        raise ValueError(
            f"size_sampling_mode is {lengths!r} in the configuration, expected one of {', '.join(_LENGTHS)}"
        )
    head_dim = int(_value(config, "head_dim", default=64))
    return {
        "image_size": side * patch_size * 2 ** (len(autoencoder["block_out_channels"]) - 1),
        "autoencoder": autoencoder,
        "in_channels": autoencoder["in_channels"],
        "scaling_factor": float(_value(config, "scaling_factor")),
        "sample_posterior": bool(_value(config, "sample_posterior")),
        "patch_size": patch_size,
        **_sizes(tensors, "encoder", "enc", head_dim),
        **_sizes(tensors, "decoder", "dec", head_dim),
        "max_time": float(_value(config, "max_timestep")),
        "num_registers": num_registers,
        "code_levels": [int(level) for level in _value(config, "levels")],
        "length_distribution": _LENGTHS[lengths],
        "null_prob": float(_value(config, "dropout_prob", default=0.0)),
        "weights_license": LICENSE,
    }


def _sizes(tensors: Mapping[str, Tensor], side: str, short: str, head_dim: int) -> dict[str, int]:
    blocks = f"{side}.module_dict.{short}_transformer.blocks"
    dim = shape_of(tensors, f"{blocks}.0.attn.wq.weight", 2)[0]
    return {f"{side}_dim": dim, f"{side}_depth": count_of(tensors, blocks), f"{side}_heads": dim // head_dim}


def _autoencoder(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `AutoencoderKL`'s config: plain blocks, attention in the middle alone."""
    name = "vae.vae.encoder.down_blocks"
    count = count_of(tensors, name)
    widths = [shape_of(tensors, f"{name}.{level}.resnets.0.conv1.weight", 4)[0] for level in range(count)]
    channels = shape_of(tensors, "vae.vae.encoder.conv_in.weight", 4)[1]
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "block_out_channels": widths,
        "layers_per_block": count_of(tensors, f"{name}.0.resnets"),
        "latent_channels": shape_of(tensors, "vae.vae.decoder.conv_in.weight", 4)[1],
        "norm_num_groups": int(_value(config, "norm_num_groups", default=32)),
        "use_quant_conv": "vae.vae.quant_conv.weight" in tensors,
        "use_post_quant_conv": "vae.vae.post_quant_conv.weight" in tensors,
    }


def _search(config: Mapping[str, Any], keys: tuple[str, ...], place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of every entry of these keys that says something."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _search(value, keys, f"{place}{key}.")
        elif key in keys and value is not None:
            yield f"{place}{key}", value


def _value(config: Mapping[str, Any], key: str, *, default: Any = None) -> Any:
    found = list(_search(config, (key,), ""))
    if not found and default is None:
        raise ValueError(
            f"the configuration lacks {key!r}, which no tensor tells: give the config.json that stands beside the weights"
        )
    if any(value != found[0][1] for _, value in found):
        raise ValueError(f"the configuration holds several values of {key!r}: {dict(found)}")
    return found[0][1] if found else default


def _entries(model: FlexTok) -> list[Entry]:
    entries, side = [], model.layout.side
    for name, tensor in model.state_dict().items():
        names, shape = _official_names(name), tuple(tensor.shape)
        if name.endswith("position_table.value"):
            shape = (1, shape[0], side, side)
        elif name == "decoder.register_positions":
            shape = (1, 1, *shape)
        entries.append(Entry(name, names, (shape[0] // len(names), *shape[1:])))
    return entries


def _official_names(name: str) -> tuple[str, ...]:
    if name.startswith("vae."):
        return (f"vae.{name}",)
    side = name.partition(".")[0]
    if block := re.fullmatch(r"(?:encoder|decoder)\.blocks\.(\d+)\.(.*)", name):
        prefix = f"{side}.module_dict.{side[:3]}_transformer.blocks.{block[1]}."
        return tuple(prefix + part for part in _BLOCK_NAMES[block[2]])
    if name in _NAMES:
        return (f"{side}.module_dict.{_NAMES[name]}",)
    stem, _, kind = name.rpartition(".")
    return (f"{side}.module_dict.{_NAMES[stem]}.{kind}",)
