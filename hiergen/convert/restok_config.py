"""The configuration of an official ResTok checkpoint, read from its tensors and, where they say nothing, from its YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hiergen.convert.state_dicts import count_of, shape_of, unwrap_state_dict

#: Tensors that only training uses.
_TRAINING_ONLY = (
    "foundation_model.",
    "vf_proj.",
    "vf_proj_dec.",
    "discriminator.",
    "perceptual_loss.",
    "ema_real_logits_mean",
    "ema_fake_logits_mean",
)

#: What the official program can do only one way: every other value of these keys crashes it or is not implemented here.
_FIXED = {"is_legacy": True, "use_l2_norm": True, "learnable_latent_tokens": False, "reduction_ratio": 0.5}


def inference_tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint that inference or decoder supervision need.

    Raises:
        ValueError: If it holds no such weights, or several.
    """
    tensors = unwrap_state_dict(checkpoint, anchor="quantize.embedding.weight")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_TRAINING_ONLY)}


def read_config(tensors: dict[str, Tensor], config: Mapping[str, Any], image_size: int | None) -> dict[str, Any]:
    """Return the arguments of `ResTok`; drops from `tensors` what the configuration switches off.

    Raises:
        ValueError: If a tensor is missing or the configuration contradicts the tensors.
    """
    flags = Flags(config)
    for key, only in _FIXED.items():
        if flags.get(key, only) != only:
            raise ValueError(f"{key} is {flags.get(key, only)!r} in the configuration, only {only!r} is supported")
    _settle_optional(tensors, flags)
    sizes = _sizes(tensors, flags)
    return {
        **sizes,
        "image_size": image_size or int(flags.get("crop_size", flags.get("image_size", 256))),
        "rotary_theta": float(flags.get("rope_base_len", 10000.0)),
        # A tiny model may be shorter than the published minimum.
        "min_tokens": flags.get("num_min_tokens", min(4, sizes["num_latent_tokens"])),
        "residual_image_tokens": flags.get("residual_image_tokens", True),
        "residual_latent_tokens": flags.get("residual_latent_tokens", True),
        "latent_hierarchy": flags.get("latent_hierarchy", True),
        "drop_prob": float(flags.get("drop_prob", 0.2)) if flags.get("drop_latent_tokens", True) else 0.0,
        "commitment_weight": float(flags.get("commitment_cost", 0.25)),
        "entropy_weight": float(flags.get("entropy_loss_ratio", 0.0)),
        "merge": "even",
        "projection": "reinterpreted",
        "cnn_shortcut": "branch",
    }


def _sizes(tensors: Mapping[str, Tensor], flags: Flags) -> dict[str, Any]:
    """Return the arguments that the tensors tell, compared with what the configuration says of them."""
    levels = count_of(tensors, "encoder.latent_token_level_embedding")
    vocab_size, code_dim = shape_of(tensors, "quantize.embedding.weight", 2)
    sizes = {
        **convnet_sizes(tensors),
        **_transformer_sizes(tensors, "encoder"),
        **_transformer_sizes(tensors, "decoder"),
        "mlp_ratio": _mlp_ratio(tensors),
        "num_latent_tokens": 2 ** (levels - 1),
        "code_dim": code_dim,
        "vocab_size": vocab_size,
        "num_image_levels": count_of(tensors, "encoder.level_embedding"),
        "multi_projection": "encoder.conv_out.weight" not in tensors,
        "learnable_image_tokens": "decoder.mask_token" in tensors,
        "decoder_features": "decoder.feat_mask_token" in tensors,
    }
    flags.compare("num_latent_tokens", sizes["num_latent_tokens"], "encoder.latent_token_level_embedding.*")
    flags.compare("codebook_size", vocab_size, "quantize.embedding.weight")
    flags.compare("token_size", code_dim, "quantize.embedding.weight")
    flags.compare("multi_quant", sizes["multi_projection"], "encoder.conv_out.*")
    flags.compare("vae_encoder", sizes["cnn_encoder"], "pixel_encoder.*")
    if sizes["num_image_levels"] > 1:
        flags.compare("hierarchy_stages", sizes["num_image_levels"], "encoder.level_embedding.*")
    return sizes


class Flags:
    """Values of a nested configuration by key: of the tokenizer's section if it has the key, else the one least deep."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values: dict[str, Any] = {}
        queue: list[Mapping[str, Any]] = [config]
        sections: list[Mapping[str, Any]] = []
        for section in queue:
            for key, value in section.items():
                if isinstance(value, Mapping):
                    queue.append(value)
                    if key == "vq_model":
                        sections.append(value)
                else:
                    self._values.setdefault(key, value)
        for section in sections:
            self._values.update({k: v for k, v in section.items() if not isinstance(v, Mapping)})

    def get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        return default if value is None else value

    def compare(self, key: str, found: Any, tensor: str) -> None:
        stated = self.get(key, found)
        if stated != found:
            raise ValueError(f"{key} is {stated!r} in the configuration, but {tensor!r} says {found!r}")


def _settle_optional(tensors: dict[str, Tensor], flags: Flags) -> None:
    """Remove tensors whose use the configuration switches off, and put zeros where adding nothing is meant."""
    if not flags.get("decoder_feature_supervision", False):
        tensors.pop("decoder.feat_mask_token", None)
    if not flags.get("learnable_dec_image_tokens", True):
        tensors.pop("decoder.mask_token", None)
    elif "decoder.mask_token" not in tensors and flags.get("learnable_dec_image_tokens", None) is not False:
        raise ValueError("the state dict lacks tensor 'decoder.mask_token', which learnable_dec_image_tokens needs")
    if not flags.get("merge_tokens", True) or flags.get("hierarchy_stages", 1) == 0:
        for name in [n for n in tensors if re.fullmatch(r"encoder\.level_embedding\.[1-9]\d*", n)]:
            del tensors[name]
        if "encoder.level_embedding.0" not in tensors and "encoder.ln_pre.weight" in tensors:
            like = tensors["encoder.ln_pre.weight"]
            tensors["encoder.level_embedding.0"] = like.new_zeros(1, len(like))


def convnet_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes of the convolutional parts, "pixel_decoder." and, if it is there, "pixel_encoder."."""
    resolutions = count_of(tensors, "pixel_decoder.up")
    widths = [shape_of(tensors, f"pixel_decoder.up.{level}.block.0.conv2.weight", 4)[0] for level in range(resolutions)]
    has_encoder = any(name.startswith("pixel_encoder.") for name in tensors)
    channels = shape_of(tensors, "pixel_encoder.conv_in.weight", 4)[0] if has_encoder else widths[0]
    for level, width in enumerate(widths):
        if width % channels:
            raise ValueError(
                f"tensor 'pixel_decoder.up.{level}.block.0.conv2.weight' has {width} channels, "
                f"expected a multiple of {channels}"
            )
    return {
        "in_channels": shape_of(tensors, "pixel_decoder.conv_out.weight", 4)[0],
        "z_channels": shape_of(tensors, "pixel_decoder.conv_in.weight", 4)[1],
        "cnn_encoder": has_encoder,
        "cnn_channels": channels,
        "cnn_multipliers": [width // channels for width in widths],
        "cnn_blocks": count_of(tensors, "pixel_decoder.up.0.block"),
        "cnn_mid_blocks": count_of(tensors, "pixel_decoder.mid"),
        "cnn_groups": math.gcd(32, channels),
    }


def _transformer_sizes(tensors: Mapping[str, Tensor], side: str) -> dict[str, int]:
    (dim,) = shape_of(tensors, f"{side}.ln_pre.weight", 1)
    name = f"{side}.blocks.0.attn.q_norm.weight"
    (head_dim,) = shape_of(tensors, name, 1)
    if dim % head_dim:
        raise ValueError(f"tensor {name!r} has {head_dim} channels, expected a divisor of the width, {dim}")
    depth = count_of(tensors, f"{side}.blocks")
    return {f"{side}_dim": dim, f"{side}_depth": depth, f"{side}_heads": dim // head_dim}


def _mlp_ratio(tensors: Mapping[str, Tensor]) -> float:
    hidden, dim = shape_of(tensors, "encoder.blocks.0.mlp.fc1.weight", 2)
    return hidden / dim
