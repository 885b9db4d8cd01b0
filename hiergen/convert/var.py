"""Official checkpoints of VAR: its tokenizer <-> `MultiScaleVQ`, its generators <-> `NextScaleAR`.

A generator computes its inputs with the tokenizer's codebook and filters, which its own file lacks: both files are converted together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.ldm_vae import latent_diffusion_name, renamed
from hiergen.convert.state_dicts import check_settings, count_of, fill_model, shape_of, unwrap_state_dict
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.levels import specs_to_json, square_specs
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ

#: A tensor that every tokenizer has and no generator, and the reverse.
_TOKENIZER, _GENERATOR = "quantize.embedding.weight", "word_embed.weight"
#: Counts of the tokenizer's use of codes, which no output needs.
_USAGE = "quantize.ema_vocab_hit_SV"
#: Where the filters stand: some for all levels, one for all, or one for each. `num_filters` of the last two is 1 and 0.
_FILTERS = {
    "list": "quantize.quant_resi.qresi_ls.",
    "one": "quantize.quant_resi.qresi.",
    "each": "quantize.quant_resi.",
}
#: Buffers of the generator that are computed.
_LEVELS, _MASK, _KEY_BIAS = "lvl_1L", "attn_bias_for_masking", "attn.zero_k_bias"

#: Beginnings of our names and of the official ones, which continue alike.
_NAMES = {
    "code_proj.": "word_embed.",
    "class_embedding.": "class_emb.",
    "start_embedding": "pos_start",
    "position_embedding": "pos_1LC",
    "level_embedding.": "lvl_embed.",
    "shared_modulation.": "shared_ada_lin.1.",
    "head_modulation.": "head_nm.ada_lin.1.",
    "head.": "head.",
}
_BLOCK_NAMES = {
    "attention.qkv.": "attn.mat_qkv.",
    "attention.query_bias": "attn.q_bias",
    "attention.value_bias": "attn.v_bias",
    "attention.log_scale": "attn.scale_mul_1H11",
    "attention.proj.": "attn.proj.",
    "ffn.": "ffn.",
    "modulation.": "ada_lin.1.",
    "modulation_offset": "ada_gss",
}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> MultiScaleVQ | NextScaleAR:
    """Return the generator of a checkpoint that holds one (`generator_from_official`), else the tokenizer (`tokenizer_from_official`)."""
    convert = generator_from_official if _holds(state_dict, _GENERATOR) else tokenizer_from_official
    return convert(state_dict, config)


def tokenizer_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> MultiScaleVQ:
    """Return the tokenizer of a checkpoint in eval mode; widths, depth and filters come from the tensors.

    Args:
        state_dict: Tensors by their official names, or a checkpoint that holds them (`unwrap_state_dict`).
        config: Arguments of `MultiScaleVQ` that replace what was found or is published: `image_size` and `sides` (else 256 and its ten),
            `filter_ratio` (else 0.5, the size of the official `quant_resi`), `search_cosine` (the official `using_znorm`).

    Raises:
        ValueError: If a tensor is missing, surplus or of a wrong shape, or `config` has an unknown entry.

    Source:
        VAR, arXiv:2404.02905: `vae_ch160v4096z32`.
    """
    tensors = unwrap_state_dict(state_dict, anchor=_TOKENIZER)
    tensors.pop(_USAGE, None)
    check_settings(config or {}, MultiScaleVQ)
    with torch.device("meta"):
        model = MultiScaleVQ(**{**_tokenizer_settings(tensors), **(config or {})})
    wanted = model.state_dict()
    names = _tokenizer_names(model, _filters_of(tensors)[0])
    fill_model(
        model, renamed(_thirds(tensors), wanted, names), names={ours: _fused(name) for ours, name in names.items()}
    )
    return model.eval()


def generator_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> NextScaleAR:
    """Return the generator of a checkpoint in eval mode; sizes and ladder come from the tensors.

    Args:
        state_dict: Checkpoints of the generator and of its tokenizer side by side, e.g. `{"generator": ..., "tokenizer": ...}`; or a
            training checkpoint, which holds both.
        config: Arguments of `NextScaleAR` that replace what was found or is published, e.g. `filter_ratio` (else 0.5). A file without
            q/k normalization does not tell its `num_heads` (else heads of 64 channels).

    Raises:
        ValueError: If the tokenizer is missing, a tensor is missing, surplus or of a wrong shape, or `config` has an unknown entry.

    Source:
        VAR, arXiv:2404.02905: `var_d16` to `var_d36`.
    """
    tensors = unwrap_state_dict(state_dict, anchor=_GENERATOR)
    if not _holds(state_dict, _TOKENIZER):
        raise ValueError(
            f"the checkpoint lacks its tokenizer's {_TOKENIZER!r}, which a generator computes its inputs with: pass both, "
            "{'generator': ..., 'tokenizer': ...}, or --tokenizer FILE"
        )
    quantizer = unwrap_state_dict(state_dict, anchor=_TOKENIZER)
    place, filters = _filters_of(quantizer)
    check_settings(config or {}, NextScaleAR)
    settings = {**_generator_settings(tensors), **filters, **(config or {})}
    with torch.device("meta"):
        model = NextScaleAR(**settings)
    wanted = model.state_dict()
    names = _generator_names(model, place)
    for name in [name for name in tensors if name in (_LEVELS, _MASK) or name.endswith(_KEY_BIAS)]:
        if tensors.pop(name).count_nonzero() and name.endswith(_KEY_BIAS):
            raise ValueError(f"tensor {name!r} holds other numbers than 0, expected keys without a bias")
    tensors |= {
        name: value for name, value in quantizer.items() if name == _TOKENIZER or name.startswith(_FILTERS["each"])
    }
    ours = renamed(tensors, wanted, names)
    for name, value in ours.items():
        # Vectors and tables have leading and trailing sides of 1 there.
        if name in wanted and value.ndim > wanted[name].ndim and value.numel() == wanted[name].numel():
            ours[name] = value.reshape(wanted[name].shape)
    fill_model(model, ours, names=names)
    return model.eval()


def tokenizer_to_official(model: MultiScaleVQ) -> dict[str, Tensor]:
    """Return the weights of a tokenizer under their official names."""
    num_filters, state = model.config["num_filters"], model.state_dict()
    names = _tokenizer_names(model, _FILTERS[{0: "each", 1: "one"}.get(num_filters, "list")])
    official: dict[str, Tensor] = {}
    for ours, name in names.items():
        value = state[ours].detach()
        if _fused(name) != name or name.endswith(".proj_out.weight"):
            value = value[..., None, None] if value.ndim == 2 else value
        # The projections of attention come in the order q, k, v.
        parts = [official[_fused(name)]] if _fused(name) in official else []
        official[_fused(name)] = torch.cat([*parts, value])
    usage = model.quantizer.usage
    hits = None if usage is None else usage.hits
    official[_USAGE] = torch.zeros(len(model.specs), model.config["vocab_size"]) if hits is None else hits
    return official


def generator_to_official(model: NextScaleAR) -> dict[str, Tensor]:
    """Return the weights of a generator, without its copy of the tokenizer's, under their official names."""
    state, num_tokens, dim = model.state_dict(), model.num_tokens, model.config["dim"]
    shapes = {
        "pos_start": (1, -1, dim),
        "pos_1LC": (1, -1, dim),
        "scale_mul_1H11": (1, -1, 1, 1),
        "ada_gss": (1, 1, 6, dim),
    }
    official = {}
    for ours, name in _generator_names(model, "").items():
        if not ours.startswith("quantizer."):
            value = state[ours].detach()
            official[name] = value.reshape(shapes.get(name.rpartition(".")[2], value.shape))
    for index in range(len(model.blocks)):
        official[f"blocks.{index}.{_KEY_BIAS}"] = torch.zeros(dim)
    sizes = torch.tensor([spec.num_tokens for spec in model.specs])
    levels = torch.arange(len(sizes)).repeat_interleave(sizes)
    official[_LEVELS] = levels[None]
    seen = levels[:, None] >= levels[None, :]
    official[_MASK] = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).reshape(1, 1, num_tokens, num_tokens)
    return official


def _holds(checkpoint: Mapping[str, Any], anchor: str) -> bool:
    """Return whether a checkpoint has a tensor of this name at any depth, after any prefix."""
    return any(
        _holds(value, anchor) if isinstance(value, Mapping) else key == anchor or str(key).endswith(f".{anchor}")
        for key, value in checkpoint.items()
    )


def _tokenizer_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = range(count_of(tensors, "encoder.down"))
    vocab_size, code_dim = shape_of(tensors, _TOKENIZER, 2)
    return {
        "widths": [shape_of(tensors, f"encoder.down.{k}.block.0.conv1.weight", 4)[0] for k in levels],
        "num_blocks": count_of(tensors, "encoder.down.0.block"),
        "code_dim": code_dim,
        "vocab_size": vocab_size,
        "code_kernel": shape_of(tensors, "quant_conv.weight", 4)[2],
        **_filters_of(tensors)[1],
    }


def _filters_of(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return where a tokenizer's filters stand, and the settings of its quantizer that this tells."""
    ratio = 0.5 if any(name.startswith(_FILTERS["each"]) for name in tensors) else 0.0
    if any(name.startswith(_FILTERS["list"]) for name in tensors):
        count = count_of(tensors, _FILTERS["list"].removesuffix("."))
        return _FILTERS["list"], {"num_filters": count, "filter_ratio": ratio}
    one = any(name.startswith(_FILTERS["one"]) for name in tensors)
    return _FILTERS["one" if one else "each"], {"num_filters": int(one), "filter_ratio": ratio}


def _quantizer_names(wanted: Mapping[str, Tensor], place: str) -> dict[str, str]:
    """Return the official name of each tensor of a quantizer whose filters stand at `place`."""
    names = {}
    for name in wanted:
        if name.startswith("quantizer.filters."):
            index, kind = name.split(".")[2:]
            names[name] = f"{place}{kind}" if place == _FILTERS["one"] else f"{place}{index}.{kind}"
    return {"quantizer.codebook": _TOKENIZER, **names}


def _tokenizer_names(model: MultiScaleVQ, place: str) -> dict[str, str]:
    wanted = model.state_dict()
    names = {name: latent_diffusion_name(name, len(model.config["widths"])) for name in wanted}
    names = {
        ours: re.sub("^to_code", "quant_conv", re.sub("^from_code", "post_quant_conv", name))
        for ours, name in names.items()
    }
    return {**names, **_quantizer_names(wanted, place)}


def _thirds(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with every fused projection of attention cut in three."""
    cut: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if ".qkv." in name:
            cut |= {
                name.replace(".qkv.", f".{part}."): third for part, third in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            cut[name] = value
    return cut


def _fused(name: str) -> str:
    """Return the name of the fused projection that a projection of attention is a third of; other names stay."""
    return re.sub(r"\.[qkv]\.(weight|bias)$", r".qkv.\1", name)


def _generator_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    dim, code_dim = shape_of(tensors, _GENERATOR, 2)
    shape_of(tensors, _LEVELS, 2)
    counts = tensors[_LEVELS].flatten().bincount().tolist()
    sides = [math.isqrt(count) for count in counts]
    if [side**2 for side in sides] != counts:
        raise ValueError(f"tensor {_LEVELS!r} counts {counts} tokens per level, expected squares")
    scale = "blocks.0.attn.scale_mul_1H11"
    return {
        "level_specs": specs_to_json(
            square_specs(sides, dim=code_dim, vocab_size=shape_of(tensors, "head.weight", 2)[0])
        ),
        "num_classes": shape_of(tensors, "class_emb.weight", 2)[0] - 1,
        "dim": dim,
        "depth": count_of(tensors, "blocks"),
        "num_heads": shape_of(tensors, scale, 4)[1] if scale in tensors else max(dim // 64, 1),
        "mlp_ratio": shape_of(tensors, "blocks.0.ffn.fc1.weight", 2)[0] / dim,
        "use_qk_norm": scale in tensors,
        "shares_modulation": "shared_ada_lin.1.weight" in tensors,
    }


def _generator_names(model: NextScaleAR, place: str) -> dict[str, str]:
    wanted = model.state_dict()
    names = {}
    for name in wanted:
        head, table, rest = "", _NAMES, name
        if match := re.match(r"(blocks\.\d+\.)(.+)", name):
            head, table, rest = match[1], _BLOCK_NAMES, match[2]
        for ours, theirs in table.items():
            if rest.startswith(ours):
                names[name] = f"{head}{theirs}{rest.removeprefix(ours)}"
    return {**names, **_quantizer_names(wanted, place)}
