"""MAR-3D's released checkpoints -> the coarse stage of `MaskedCascade`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hiergen.convert.masked import build, read_sizes, with_heads
from hiergen.convert.state_dicts import shape_of, unwrap_state_dict
from hiergen.generators.masked.model import MaskedAR

#: Prefixes of what a released training checkpoint holds beside the generator: the image encoder and the shape VAE.
OTHER_PARTS = ("condition.", "shape_model.")


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> MaskedAR:
    """Return the generator of a released MAR-3D checkpoint in eval mode: the coarse stage, the only one that was released.

    The prefix is the last hidden state of the image encoder itself, one row per feature, so the model takes features as wide as it
    is. Layer norm epsilon is 1e-5 and latents are not scaled, as in the released program. `MaskedCascade.from_low_stage` builds
    the fine stage around it.

    Args:
        state_dict: The tensors, with or without the prefix "mar."; or a training checkpoint that holds them under "state_dict".
            With the prefix, the image encoder ("condition.") and the VAE ("shape_model.") beside them are left out.
        config: Entries of the `MaskedAR` config that replace what was found, e.g. `{"encoder_heads": 8, "decoder_heads": 8}`.

    Raises:
        ValueError: If a tensor is missing, unexpected or of another shape, naming it; or if the width is not a published one and
            `config` does not give the heads.

    Source:
        Layout of the release of arXiv:2503.20519.
    """
    tensors = _generator_part(unwrap_state_dict(state_dict, containers=("state_dict",)))
    found = read_sizes(tensors)
    rows, dim = shape_of(tensors, "fake_latent", 2)
    places = shape_of(tensors, "encoder_pos_embed_learned", 3)[1]
    num_tokens = found.pop("num_tokens")
    if places != rows + num_tokens:
        raise ValueError(
            f"tensor 'encoder_pos_embed_learned' has {places} places, expected {rows} of 'fake_latent' and {num_tokens} tokens"
        )
    # Latents of a shape have no order in space.
    found["level_specs"][0]["grid"] = None
    found |= {"num_classes": None, "feature_shapes": [[rows, dim]], "norm_eps": 1e-5}
    return build({**found, **with_heads(found, config)}, tensors)


def _generator_part(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not any(name.startswith("mar.") for name in tensors):
        return dict(tensors)
    part = {}
    for name, value in tensors.items():
        if name.startswith("mar."):
            part[name.removeprefix("mar.")] = value
        elif not name.startswith(OTHER_PARTS):
            raise ValueError(f"unexpected tensor {name!r}, expected names that begin with 'mar.' or {OTHER_PARTS}")
    return part
