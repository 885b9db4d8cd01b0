"""Official checkpoints of MaskGIT-VQGAN in PyTorch (open-muse's, TiTok's, RAR's) <-> `MaskGITVQ`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.restok import official_convnet_name
from hiergen.convert.restok_config import Flags, convnet_sizes
from hiergen.convert.state_dicts import Entry, fill_entries, shape_of, take_entries, unwrap_state_dict
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ


def from_official(
    state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None, *, image_size: int | None = None
) -> MaskGITVQ:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`).
        config: The official configuration, nested or flat, for the image size (`crop_size`), which no tensor tells.
        image_size: Height and width of the images in pixels; None takes `config`'s, else 256.

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it.

    Source:
        `maskgit-vqgan-imagenet-f16-256.bin`, arXiv:2406.07550.
    """
    tensors = unwrap_state_dict(state_dict, anchor="quantize.embedding.weight")
    renamed = {re.sub(r"^(encoder|decoder)\.", r"pixel_\1.", name): tensor for name, tensor in tensors.items()}
    sizes = convnet_sizes(renamed)
    if not sizes.pop("cnn_encoder"):
        raise ValueError("the state dict lacks tensors 'encoder.*'")
    size = image_size or int(Flags(config or {}).get("crop_size", 256))
    with torch.device("meta"):
        model = MaskGITVQ(**sizes, image_size=size, vocab_size=shape_of(tensors, "quantize.embedding.weight", 2)[0])
    fill_entries(model, tensors, _entries(model))
    return model.eval()


def to_official(model: MaskGITVQ) -> dict[str, Tensor]:
    """Return the state dict with official names. The tensors share memory with the model.

    Raises:
        ValueError: If the model has the corrected shortcut, which the official program would compute differently.
    """
    if model.config["cnn_shortcut"] != "branch":
        raise ValueError(f"cnn_shortcut is {model.config['cnn_shortcut']!r}; the official program knows only 'branch'")
    return take_entries(model, _entries(model))


def _entries(model: MaskGITVQ) -> list[Entry]:
    return [Entry(name, (_official_name(name),), tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def _official_name(name: str) -> str:
    if name == "quantizer.codebook":
        return "quantize.embedding.weight"
    return official_convnet_name(name).removeprefix("pixel_")
