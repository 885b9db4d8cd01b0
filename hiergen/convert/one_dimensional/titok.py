"""Official checkpoints of TiTok's tokenizers <-> `TiTok`: discrete and continuous, of one stage or two. TA-TiTok is not among them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.one_dimensional.maskgit_vq import to_official as proxy_to_official
from hiergen.convert.restok import official_convnet_name
from hiergen.convert.restok_config import Flags, convnet_sizes
from hiergen.convert.state_dicts import Entry, count_of, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ
from hiergen.tokenizers.titok.model import TiTok
from hiergen.tokenizers.titok.presets import SIZES

_BLOCK_NAMES = {
    "norm1.weight": "ln_1.weight",
    "norm1.bias": "ln_1.bias",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj.weight": "attn.out_proj.weight",
    "attn.proj.bias": "attn.out_proj.bias",
    "norm2.weight": "ln_2.weight",
    "norm2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp.fc2.bias": "mlp.c_proj.bias",
}
_SIDE_NAMES = {
    "cls_embedding": "class_embedding",
    "position_embedding": "positional_embedding",
    "latent_position_embedding": "latent_token_positional_embedding",
    "norm_in": "ln_pre",
    "norm_out": "ln_post",
    "embed": "decoder_embed",
}
_NAMES = {
    "encoder.latent_tokens": "latent_tokens",
    "quantizer.codebook": "quantize.embedding.weight",
    "proxy_codebook": "pixel_quantize.embedding.weight",
    "to_code": "encoder.conv_out",
    "head.fc1": "decoder.ffn.0",
    "head.fc2": "decoder.ffn.2",
    "head.fc": "decoder.ffn.0",
    "head.conv_out": "decoder.conv_out",
}


def from_official(
    state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None, *, proxy: MaskGITVQ | None = None
) -> TiTok:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, nested or flat, for what shapes do not tell: `vit_enc_model_size` and `vit_dec_model_size`
            (or `encoder_heads` and `decoder_heads`; else heads of 64 channels), `use_l2_norm` (else that of the published models, true
            for those with proxy codes) and `is_legacy` (else the same).
        proxy: The tokenizer that a checkpoint of the first stage learns from: it lacks the pixel decoder. The result has
            `output="proxy"` then.

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it; or if the configuration
            contradicts the tensors.

    Source:
        TiTok, arXiv:2406.07550.
    """
    tensors = unwrap_state_dict(state_dict, anchor="latent_tokens")
    flags = Flags(config or {})
    has_proxy_codes = "decoder.ffn.2.weight" in tensors
    output = "pixels"
    if has_proxy_codes:
        output = "proxy_decoded"
        if "pixel_quantize.embedding.weight" not in tensors:
            output, tensors = "proxy", {**tensors, **_proxy_tensors(proxy)}
    with torch.device("meta"):
        model = TiTok(**_settings(tensors, flags, output))
    fill_entries(model, tensors, _entries(model))
    return model.eval()


def to_official(model: TiTok) -> dict[str, Tensor]:
    """Return the state dict with official names and shapes. The tensors share memory with the model.

    Raises:
        ValueError: If the model has a part or a combination of parts that the official program does not have.
    """
    layout = model.layout
    has_proxy_codes = layout.output != "pixels"
    if (layout.projection == "reinterpreted") != has_proxy_codes:
        raise ValueError(
            f"projection is {layout.projection!r} with output {layout.output!r}; the official program knows only 'reinterpreted' with "
            "proxy codes, and 'per_token' with pixels"
        )
    if has_proxy_codes and layout.cnn_shortcut != "branch":
        raise ValueError(f"cnn_shortcut is {layout.cnn_shortcut!r}; the official program knows only 'branch'")
    found = take_entries(model, _entries(model))
    if layout.output == "proxy":
        return {name: tensor for name, tensor in found.items() if not name.startswith("pixel_")}
    return found


def _proxy_tensors(proxy: MaskGITVQ | None) -> dict[str, Tensor]:
    if proxy is None:
        raise ValueError(
            "the state dict lacks tensor 'pixel_quantize.embedding.weight': it is of the first stage, whose pixels another tokenizer makes. "
            "Give that one as proxy"
        )
    found = proxy_to_official(proxy)
    return {f"pixel_{name}": tensor for name, tensor in found.items() if not name.startswith("encoder.")}


def _settings(tensors: dict[str, Tensor], flags: Flags, output: str) -> dict[str, Any]:
    """Return the arguments of `TiTok`."""
    has_proxy_codes = output != "pixels"
    if flags.get("is_legacy", has_proxy_codes) != has_proxy_codes:
        raise ValueError(
            f"is_legacy is {not has_proxy_codes} in the configuration, but the tensors of decoder.ffn say {has_proxy_codes}"
        )
    dim, channels, patch_size, _ = shape_of(tensors, "encoder.patch_embed.weight", 4)
    side = math.isqrt(shape_of(tensors, "encoder.positional_embedding", 2)[0] - 1)
    vocab_size = None
    if "quantize.embedding.weight" in tensors:
        vocab_size = shape_of(tensors, "quantize.embedding.weight", 2)[0]
    convolutions: dict[str, Any] = {}
    if has_proxy_codes:
        convolutions = convnet_sizes(tensors)
        del convolutions["cnn_encoder"]
        convolutions["proxy_vocab_size"] = shape_of(tensors, "pixel_quantize.embedding.weight", 2)[0]
    hidden = shape_of(tensors, "encoder.transformer.0.mlp.c_fc.weight", 2)[0]
    return {
        "in_channels": channels,
        **convolutions,
        "image_size": side * patch_size,
        "patch_size": patch_size,
        **_side(tensors, flags, "encoder"),
        **_side(tensors, flags, "decoder"),
        "mlp_ratio": hidden / dim,
        "num_latent_tokens": shape_of(tensors, "latent_tokens", 2)[0],
        "code_dim": shape_of(tensors, "decoder.decoder_embed.weight", 2)[1],
        "vocab_size": vocab_size,
        "normalize_codes": bool(flags.get("use_l2_norm", has_proxy_codes)),
        "projection": "reinterpreted" if has_proxy_codes else "per_token",
        "output": output,
    }


def _side(tensors: Mapping[str, Tensor], flags: Flags, side: str) -> dict[str, int]:
    (dim,) = shape_of(tensors, f"{side}.ln_pre.weight", 1)
    size = flags.get(f"vit_{side[:3]}_model_size", None)
    heads = flags.get(f"{side}_heads", SIZES[size][2] if size in SIZES else None)
    if heads is None and dim % 64:
        raise ValueError(f"the heads of a {side} with {dim} channels are not known: give config['{side}_heads']")
    depth = count_of(tensors, f"{side}.transformer")
    return {f"{side}_dim": dim, f"{side}_depth": depth, f"{side}_heads": dim // 64 if heads is None else int(heads)}


def _entries(model: TiTok) -> list[Entry]:
    entries = []
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name == "decoder.mask_token":
            shape = (1, *shape)
        elif name in ("to_code.weight", "head.fc1.weight", "head.fc2.weight", "head.fc.weight"):
            shape = (*shape, 1, 1)
        entries.append(Entry(name, (_official_name(name),), shape))
    return entries


def _official_name(name: str) -> str:
    if name.startswith("pixel_decoder."):
        return official_convnet_name(name)
    if block := re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(.*)", name):
        return f"{block[1]}.transformer.{block[2]}.{_BLOCK_NAMES[block[3]]}"
    if name in _NAMES:
        return _NAMES[name]
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    side, part, *rest = name.split(".")
    return ".".join((side, _SIDE_NAMES.get(part, part), *rest))
