"""Official checkpoints of LlamaGen: its tokenizers VQ-16 and VQ-8 -> `VQAutoencoder`, its generators by class or text -> `LevelAR`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.config import nearest
from hiergen.convert import level_ar
from hiergen.convert.ldm_vae import renamed
from hiergen.convert.state_dicts import check_settings, count_of, fill_model, shape_of, unwrap_state_dict
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import grid_specs
from hiergen.pyramid import specs_to_json
from hiergen.tokenizers.vq_autoencoder.model import VQAutoencoder

#: A tensor that every tokenizer has and no generator.
_TOKENIZER = "quantize.embedding.weight"
#: The ids used last, which no output needs.
_USAGE = "quantize.codebook_used"

#: Patterns in our names and their official replacements, applied in this order. Both decoders count blocks in their order of use.
_NAMES = (
    (r"^quantizer\.codebook$", "quantize.embedding.weight"),
    (r"^to_code\.", "quant_conv."),
    (r"^from_code\.", "post_quant_conv."),
    (r"conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.0\.", "mid.0."),
    (r"mid_block\.attentions\.0\.", "mid.1."),
    (r"mid_block\.resnets\.1\.", "mid.2."),
    (r"(down|up)_blocks\.", "conv_blocks."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.resnets\.", ".res."),
    (r"\.attentions\.", ".attn."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)


#: Rotary tables that old generators saved; they follow from the sizes.
_ROTARY = "freqs_cis"
#: What `generator_from_official` reads of its config, with the sizes where it is silent.
_GENERATOR_CONFIG = {"image_size": 256, "stride": 16, "code_dim": 8, "n_head": None, "gpt_model": None}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> VQAutoencoder | LevelAR:
    """Return the tokenizer or the generator that a checkpoint holds, see `tokenizer_from_official` and `generator_from_official`."""
    if any(name.endswith(_TOKENIZER) for name in _names(state_dict)):
        return tokenizer_from_official(state_dict, config)
    return generator_from_official(state_dict, config)


def generator_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> LevelAR:
    """Return a generator by class or by text in eval mode; sizes come from the tensors, which do not tell the grid.

    Args:
        state_dict: Tensors by their official names, or a checkpoint that holds them (`unwrap_state_dict`).
        config: `image_size` (else 256) and `stride` (else 16) for the grid, `code_dim` of the tokenizer (else 8), and `n_head` or
            `gpt_model` for a width that LlamaGen did not publish.

    Raises:
        ValueError: If a tensor is missing, unknown or of the wrong shape, or `config` has an unknown entry.

    Source:
        LlamaGen, arXiv:2406.06525: `c2i_B_256` to `c2i_3B_384`, `t2i_XL_stage1_256` and `t2i_XL_stage2_512`.
    """
    given = config or {}
    for name in given:
        if name not in _GENERATOR_CONFIG:
            raise ValueError(
                f"config entry {name!r} is no setting of LlamaGen's generators{nearest(name, _GENERATOR_CONFIG)}"
            )
    is_of_text = any(name.endswith(level_ar.TEXT_ANCHOR) for name in _names(state_dict))
    tensors = unwrap_state_dict(state_dict, anchor=level_ar.TEXT_ANCHOR if is_of_text else level_ar.ANCHOR)
    tensors.pop(_ROTARY, None)
    values = {**_GENERATOR_CONFIG, **given}
    side = int(values["image_size"]) // int(values["stride"])
    vocab_size = shape_of(tensors, "tok_embeddings.weight", 2)[0]
    specs = grid_specs(side, dim=int(values["code_dim"]), vocab_size=vocab_size)
    sizes = level_ar.read_sizes(tensors, given)
    settings = {"level_specs": specs_to_json(specs), **sizes, "layout": "token", "rotary": "grid"}
    return level_ar.build(settings, tensors)


def _names(checkpoint: Mapping[Any, Any]) -> Iterator[str]:
    """Yield the names in a checkpoint, at any depth."""
    for name, value in checkpoint.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


def tokenizer_from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> VQAutoencoder:
    """Return the tokenizer of a checkpoint in eval mode; widths and depth come from the tensors.

    Args:
        state_dict: Tensors by their official names, or a checkpoint that holds them (`unwrap_state_dict`).
        config: Arguments of `VQAutoencoder` that replace what was found: `image_size`, else 256.

    Raises:
        ValueError: If a tensor is missing, surplus or of a wrong shape, or `config` has an unknown entry.

    Source:
        LlamaGen, arXiv:2406.06525: `vq_ds16_c2i`, `vq_ds8_c2i`, `vq_ds16_t2i`.
    """
    tensors = unwrap_state_dict(state_dict, anchor=_TOKENIZER)
    tensors.pop(_USAGE, None)
    check_settings(config or {}, VQAutoencoder)
    with torch.device("meta"):
        model = VQAutoencoder(**{**_tokenizer_settings(tensors), **(config or {})})
    wanted = model.state_dict()
    names = {name: _official_name(name) for name in wanted}
    fill_model(model, renamed(tensors, wanted, names), names=names)
    return model.eval()


def _official_name(name: str) -> str:
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _tokenizer_settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = range(count_of(tensors, "encoder.conv_blocks"))
    vocab_size, code_dim = shape_of(tensors, _TOKENIZER, 2)
    return {
        "widths": [shape_of(tensors, f"encoder.conv_blocks.{k}.res.0.conv1.weight", 4)[0] for k in levels],
        "num_blocks": count_of(tensors, "encoder.conv_blocks.0.res"),
        "latent_channels": shape_of(tensors, "decoder.conv_in.weight", 4)[1],
        "code_dim": code_dim,
        "vocab_size": vocab_size,
    }
