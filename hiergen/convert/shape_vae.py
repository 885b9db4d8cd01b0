"""Official checkpoints of the shape VAEs Michelangelo, CraftsMan and MAR-3D -> `PyramidVAE` of one level, one point resolution."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.state_dicts import count_of, fill_model, shape_of
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

#: The tensor that every checkpoint of the family has; what stands before it is the checkpoint's prefix.
_ANCHOR = "encoder.input_proj.weight"

#: Patterns in our names and their official replacements, applied in this order.
_MODULES = (
    (r"^query_banks\.0$", "encoder.query"),
    (r"^input_projections\.0\.", "encoder.input_proj."),
    (r"^cross_blocks\.0\.", "encoder.cross_attn."),
    (r"^encoder_stack\.blocks\.", "encoder.self_attn.resblocks."),
    (r"^encoder_norm\.", "encoder.ln_post."),
    (r"^to_moments\.", "pre_kl."),
    (r"^decoder\.from_tokens\.", "post_kl."),
    (r"^decoder\.stack\.blocks\.", "transformer.resblocks."),
    (r"^decoder\.query_projection\.", "decoder.query_proj."),
    (r"^decoder\.cross_block\.", "decoder.cross_attn_decoder."),
    (r"^decoder\.norm\.", "decoder.ln_post."),
    (r"^decoder\.output\.", "decoder.output_proj."),
    (r"\.attention\.query_key_value\.", ".attn.c_qkv."),
    (r"\.attention\.key_value\.", ".attn.c_kv."),
    (r"\.attention\.query\.", ".attn.c_q."),
    (r"\.attention\.output\.", ".attn.c_proj."),
    (r"\.mlp\.up\.", ".mlp.c_fc."),
    (r"\.mlp\.down\.", ".mlp.c_proj."),
)
#: The norms are numbered there: a self-attention block has two, a cross-attention block three.
_SELF_NORMS = {"norm_attention": "ln_1", "norm_mlp": "ln_2"}
_CROSS_NORMS = {"norm_query": "ln_1", "norm_data": "ln_2", "norm_mlp": "ln_3"}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> PyramidVAE:
    """Return the model of a released checkpoint, in eval mode, with its own copy of the weights.

    Sizes, biases, the kind of queries and the Fourier frequencies are read off the tensors. What no tensor shows comes from
    `config`, under the names of the official YAML files.

    Args:
        state_dict: The VAE's tensors, or a Lightning checkpoint (key "state_dict", prefix `shape_model.`) that may hold other
            modules beside it.
        config: `heads` (default: heads of 64 channels), `include_pi` (default False), and `num_latents`, needed where the
            queries are farthest points. The released code takes a twentieth of the points whatever `num_latents` says: 1024 of
            20480. Sizes given here that the tensors contradict are errors; keys of other parts are ignored.

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape, or `config` contradicts one, naming the tensor.
    """
    config = dict(config or {})
    tensors = _vae_tensors(state_dict)
    model_config = _read_config(tensors, config)
    with torch.device("meta"):
        model = PyramidVAE(**model_config)
    names = {name: _official_name(name) for name in model.state_dict()}
    ours = {name: tensors.pop(official) for name, official in names.items() if official in tensors}
    fill_model(model, {**ours, **tensors}, names=names)
    return model.eval()


def _vae_tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the VAE's tensors under their own names, whatever wraps them."""
    inner = state_dict.get("state_dict", state_dict)
    prefixes = [name.removesuffix(_ANCHOR) for name in inner if name.endswith(_ANCHOR)]
    if len(prefixes) != 1:
        raise ValueError(f"expected one tensor named {_ANCHOR!r} (after any prefix), found {len(prefixes)}")
    return {name.removeprefix(prefixes[0]): value for name, value in inner.items() if name.startswith(prefixes[0])}


def _read_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `PyramidVAE` that these tensors fit."""
    width, input_dim = shape_of(tensors, _ANCHOR, 2)
    embed_dim = shape_of(tensors, "decoder.query_proj.weight", 2)[1]
    if embed_dim % 6 != 3 or input_dim < embed_dim:
        raise ValueError(
            f"tensor 'decoder.query_proj.weight' takes {embed_dim} channels and {_ANCHOR!r} {input_dim}: "
            "expected 3 (2 F + 1) for F frequencies, and as many or more"
        )
    embeds_features = input_dim == 2 * embed_dim
    sizes = {
        "width": (width, _ANCHOR),
        "embed_dim": (shape_of(tensors, "post_kl.weight", 2)[1], "post_kl.weight"),
        "num_encoder_layers": (
            count_of(tensors, "encoder.self_attn.resblocks", at_least=0),
            "encoder.self_attn.resblocks",
        ),
        "num_decoder_layers": (count_of(tensors, "transformer.resblocks", at_least=0), "transformer.resblocks"),
        "num_freqs": ((embed_dim // 3 - 1) // 2, "decoder.query_proj.weight"),
        "point_feats": (3 if embeds_features else input_dim - embed_dim, _ANCHOR),
    }
    for key, (size, name) in sizes.items():
        if config.get(key, size) != size:
            raise ValueError(f"config says {key} = {config[key]}, tensor {name!r} says {size}")
    heads = config.get("heads", width // 64)
    if heads < 1 or width % heads or ("heads" not in config and width % 64):
        raise ValueError(f"tensor {_ANCHOR!r} has width {width}: give config 'heads', a divisor of it (got {heads})")
    return {
        "num_tokens": [_num_tokens(tensors, config)],
        "token_dim": sizes["embed_dim"][0],
        "width": width,
        "num_heads": heads,
        "encoder_depth": sizes["num_encoder_layers"][0],
        "decoder_depth": sizes["num_decoder_layers"][0],
        "num_frequencies": sizes["num_freqs"][0],
        "include_pi": bool(config.get("include_pi", False)),
        "point_features": sizes["point_feats"][0],
        "embed_point_features": embeds_features,
        "point_counts": None,
        "queries": "learned" if "encoder.query" in tensors else "farthest",
        "qkv_bias": "encoder.cross_attn.attn.c_q.bias" in tensors,
        "final_encoder_norm": "encoder.ln_post.weight" in tensors,
    }


def _num_tokens(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    if "encoder.query" in tensors:
        count = shape_of(tensors, "encoder.query", 2)[0]
        if config.get("num_latents", count) != count:
            raise ValueError(f"config says num_latents = {config['num_latents']}, tensor 'encoder.query' says {count}")
        return count
    if "num_latents" not in config:
        raise ValueError(
            "tensor 'encoder.query' is absent, so the queries are farthest points: give config 'num_latents', how many"
        )
    return config["num_latents"]


def _official_name(name: str) -> str:
    """Return the released name of one of our parameters."""
    norms = _CROSS_NORMS if "cross_block" in name else _SELF_NORMS
    for pattern, official in _MODULES:
        name = re.sub(pattern, official, name)
    return re.sub(r"\b(norm_(?:query|data|attention|mlp))\b", lambda match: norms[match[1]], name)
