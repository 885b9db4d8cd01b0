"""Official checkpoints of MAR -> `MaskedAR`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor

from hiergen.convert.state_dicts import count_of, fill_model, shape_of, unwrap_state_dict
from hiergen.generators.masked.model import MaskedAR

#: Attention heads of the published models by their width; a state dict does not tell.
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}

#: What the program that trained the published models multiplies KL-16 latents by before the model sees them.
KL16_MULTIPLIER = 0.2325

#: Beginnings of official names and of ours. The longest one that fits is replaced.
_NAMES = {
    "class_emb": "prefix.class_embedding",
    "fake_latent": "prefix.null",
    "encoder_pos_embed_learned": "transformer.encoder_positions",
    "decoder_pos_embed_learned": "transformer.decoder_positions",
    "diffusion_pos_embed_learned": "transformer.query_positions",
    "mask_token": "transformer.mask_token",
    "z_proj": "transformer.token_proj",
    "z_proj_ln": "transformer.token_norm",
    "encoder_blocks": "transformer.encoder",
    "encoder_norm": "transformer.encoder_norm",
    "decoder_embed": "transformer.decoder_proj",
    "decoder_blocks": "transformer.decoder",
    "decoder_norm": "transformer.decoder_norm",
    "diffloss.net.time_embed": "head.time",
    "diffloss.net.cond_embed": "head.condition",
    "diffloss.net.input_proj": "head.input",
    "diffloss.net.res_blocks": "head.blocks",
    "diffloss.net.final_layer.linear": "head.output",
    "diffloss.net.final_layer.adaLN_modulation.1": "head.output_modulation",
}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> MaskedAR:
    """Return the model of a published MAR checkpoint, class-conditional, in eval mode.

    Sizes are read from the shapes. What shapes do not tell is that of the published models: attention heads by width, layer norm
    epsilon 1e-6, latents multiplied by 0.2325 (the model then takes and returns the raw latents of the KL-16 autoencoder).

    Args:
        state_dict: The tensors, or a training checkpoint that holds them under "model_ema" (taken first) or "model". A published
            file also holds an argparse Namespace: load it with `torch.load(path, weights_only=True)` inside
            `torch.serialization.safe_globals([argparse.Namespace])`.
        config: Entries of the `MaskedAR` config that replace what was found, e.g. `{"encoder_heads": 8, "decoder_heads": 8}`.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape, naming it; or if the width is not a published one and
            `config` does not give the heads.

    Source:
        Layout of the checkpoints of arXiv:2406.11838.
    """
    tensors = unwrap_state_dict(state_dict, containers=("model_ema", "model"))
    found = read_sizes(tensors)
    found["num_classes"] = shape_of(tensors, "class_emb.weight", 2)[0]
    found["num_buffer"] = shape_of(tensors, "encoder_pos_embed_learned", 3)[1] - found.pop("num_tokens")
    found["latent_multiplier"] = KL16_MULTIPLIER
    return build({**found, **with_heads(found, config)}, tensors)


def read_sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the `MaskedAR` config entries that shapes tell, and "num_tokens"."""
    num_tokens, decoder_dim = shape_of(tensors, "diffusion_pos_embed_learned", 3)[1:]
    encoder_dim, token_dim = shape_of(tensors, "z_proj.weight", 2)
    side = math.isqrt(num_tokens)
    grid = [side, side] if side * side == num_tokens else None
    return {
        "num_tokens": num_tokens,
        "level_specs": [{"num_tokens": num_tokens, "grid": grid, "dim": token_dim, "vocab_size": None}],
        "encoder_dim": encoder_dim,
        "decoder_dim": decoder_dim,
        "encoder_depth": count_of(tensors, "encoder_blocks"),
        "decoder_depth": count_of(tensors, "decoder_blocks"),
        "mlp_ratio": shape_of(tensors, "encoder_blocks.0.mlp.fc1.weight", 2)[0] / encoder_dim,
        "head_dim": shape_of(tensors, "diffloss.net.input_proj.weight", 2)[0],
        "head_depth": count_of(tensors, "diffloss.net.res_blocks"),
    }


def with_heads(found: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `config` with the attention heads of the published widths where it gives none.

    Raises:
        ValueError: If a width is not a published one and `config` does not give its heads.
    """
    complete = dict(config or {})
    for part in ("encoder", "decoder"):
        width = found[f"{part}_dim"]
        if f"{part}_heads" not in complete:
            if width not in HEADS_BY_WIDTH:
                raise ValueError(
                    f"{part} width {width} is not a published one {sorted(HEADS_BY_WIDTH)}: give config {part}_heads"
                )
            complete[f"{part}_heads"] = HEADS_BY_WIDTH[width]
    return complete


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> MaskedAR:
    """Return the model of a config with the given official tensors, in eval mode; the tensors are copied.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape.
    """
    # Weights are about to be replaced: none are drawn or held.
    with init_empty_weights(include_buffers=False):
        model = MaskedAR(**config)
    names = {our_name(name): name for name in tensors}
    foreign = {ours: official_name(ours) for ours in model.state_dict()}
    fill_model(model, {ours: tensors[name] for ours, name in names.items()}, names={**foreign, **names})
    return model.eval()


def our_name(name: str) -> str:
    """Return our name of an official tensor, or the name itself where there is none."""
    fitting = [start for start in _NAMES if name == start or name.startswith(start + ".")]
    if not fitting:
        return name
    start = max(fitting, key=len)
    ours = _NAMES[start] + name[len(start) :]
    return re.sub(r"(head\.blocks\.\d+)\.in_ln\.", r"\1.norm.", ours).replace("adaLN_modulation.1.", "modulation.")


def official_name(name: str) -> str:
    """Return the official name of one of our tensors, or the name itself where there is none."""
    fitting = [start for start, ours in _NAMES.items() if name == ours or name.startswith(ours + ".")]
    if not fitting:
        return name
    start = max(fitting, key=lambda key: len(_NAMES[key]))
    official = start + name[len(_NAMES[start]) :]
    official = re.sub(r"(res_blocks\.\d+)\.norm\.", r"\1.in_ln.", official)
    return re.sub(r"(res_blocks\.\d+)\.modulation\.", r"\1.adaLN_modulation.1.", official)
