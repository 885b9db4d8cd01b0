"""Official KL autoencoders of the latent-diffusion family (VA-VAE f16d32, MAR's KL-16) -> diffusers' `AutoencoderKL`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import Tensor

from hiergen.convert.state_dicts import check_settings, count_of, fill_model, shape_of, unwrap_state_dict

#: What a training checkpoint holds beside the autoencoder: loss modules, the frozen teacher, the alignment projection.
TRAINING_PREFIXES = ("loss.", "foundation_model.", "linear_proj.")

#: Patterns in diffusers' names and their official replacements, within `encoder.` and `decoder.`, applied in this order.
_NAMES = (
    (r"conv_norm_out", "norm_out"),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"down_blocks\.(\d+)\.", r"down.\1."),
    (r"up_blocks\.(\d+)\.", r"up.\1."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> AutoencoderKL:
    """Return the autoencoder of a checkpoint, with its dtype; sizes, and which levels have attention, come from the tensors.

    The latents are not scaled: `scaling_factor` is 1 unless given (MAR multiplies KL-16's latents by 0.2325).

    Args:
        state_dict: Tensors by their official names, or a checkpoint that holds them (`unwrap_state_dict`). Tensors that only training
            needs (`TRAINING_PREFIXES`) are ignored.
        config: Entries of `AutoencoderKL`'s config that replace what was found.

    Raises:
        ValueError: If a tensor is missing, surplus or of a wrong shape, sizes contradict each other, or `config` has an unknown
            entry.

    Source:
        Latent diffusion, arXiv:2112.10752; VA-VAE, arXiv:2501.01423; MAR, arXiv:2406.11838.
    """
    tensors = unwrap_state_dict(state_dict, anchor="decoder.conv_in.weight")
    tensors = {name: value for name, value in tensors.items() if not name.startswith(TRAINING_PREFIXES)}
    check_settings(config or {}, AutoencoderKL)
    settings = {**_infer_config(tensors), **(config or {})}
    with init_empty_weights(include_buffers=False):
        model: Any = AutoencoderKL(**settings)
    wanted = model.state_dict()
    names = {name: latent_diffusion_name(name, len(settings["block_out_channels"])) for name in wanted}
    fill_model(model, renamed(tensors, wanted, names), names=names)
    return model.eval()


def renamed(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return official tensors by the names of a model that is built of diffusers' encoder and decoder, and the rest as it is.

    Args:
        tensors: Values by their official names.
        wanted: The model's state dict. Where it has a matrix and the checkpoint a 1 x 1 convolution, as in attention, that is flattened.
        names: The official name of each of the model's names.
    """
    left = dict(tensors)
    ours = {name: left.pop(official) for name, official in names.items() if official in left}
    for name, value in ours.items():
        if value.ndim == 4 and wanted[name].ndim == 2 and value.shape[2:] == (1, 1):
            ours[name] = value.flatten(1)
    return {**ours, **left}


def latent_diffusion_name(name: str, num_levels: int) -> str:
    """Return the latent-diffusion name of a tensor of diffusers' encoder or decoder of so many resolutions; other names stay."""
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    # Their decoder counts levels by resolution, diffusers' by order of use.
    return re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.up.{num_levels - 1 - int(match[1])}", name)


def _infer_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    num_levels = count_of(tensors, "encoder.down")
    widths = [shape_of(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(num_levels)]
    depth = count_of(tensors, "encoder.down.0.block")
    latent = shape_of(tensors, "decoder.conv_in.weight", 4)[1]
    moments = shape_of(tensors, "encoder.conv_out.weight", 4)[0]
    if moments != 2 * latent:
        raise ValueError(f"'encoder.conv_out.weight' gives {moments} moments, the decoder reads {latent} channels")
    for name, channels in (("quant_conv", moments), ("post_quant_conv", latent)):
        shape = shape_of(tensors, f"{name}.weight", 4) if f"{name}.weight" in tensors else (channels, channels)
        if shape[:2] != (channels, channels):
            raise ValueError(f"'{name}.weight' has shape {shape}, expected {channels} channels in and out")
    down = [f"encoder.down.{level}.attn.0.q.weight" in tensors for level in range(num_levels)]
    up = [f"decoder.up.{level}.attn.0.q.weight" in tensors for level in reversed(range(num_levels))]
    return {
        "in_channels": shape_of(tensors, "encoder.conv_in.weight", 4)[1],
        "out_channels": shape_of(tensors, "decoder.conv_out.weight", 4)[0],
        "down_block_types": tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in down),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in up),
        "block_out_channels": tuple(widths),
        "layers_per_block": depth,
        "latent_channels": latent,
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": 1.0,
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }
