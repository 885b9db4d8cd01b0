"""Official checkpoints of H-Net <-> `HNet`.

Three things differ besides names: the two halves of an MLP's first layer are two layers here; rotations turn adjacent channels here, and
channels half a rotary part apart there, so that the rows of queries and keys are reordered; stages are nested there and a list here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from hiergen.convert.restok_config import Flags
from hiergen.convert.state_dicts import (
    Entry,
    count_of,
    fill_entries,
    shape_of,
    take_entries,
    unwrap_state_dict,
)
from hiergen.generators.sequences.hnet.blocks import parse_layers
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.hnet.stages import Stage

#: Heads of all published models, which no tensor's shape tells.
_HEADS = 16
#: Earlier chunks that attention of a stage between the outermost and the innermost sees, in all published models.
_WINDOW = 1023

_NAMES = {"embedding.weight": "embeddings.weight", "head.weight": "lm_head.weight"}
_STAGE_NAMES = {
    "padding": "pad_dimension",
    "router.query.weight": "routing_module.q_proj_layer.weight",
    "router.key.weight": "routing_module.k_proj_layer.weight",
    "residual.weight": "residual_proj.weight",
    "residual.bias": "residual_proj.bias",
}
_LAYER_NAMES = {
    "mixer.conv.weight": "mixer.conv1d.weight",
    "mixer.conv.bias": "mixer.conv1d.bias",
    "mixer.qkv.weight": "mixer.Wqkv.weight",
    "mixer.out.weight": "mixer.out_proj.weight",
    "mlp.down.weight": "mlp.fc2.weight",
    # The halves of one tensor.
    "mlp.up.weight": "mlp.fc1.weight.value",
    "mlp.gate.weight": "mlp.fc1.weight.gate",
}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> HNet:
    """Return the model that an official checkpoint holds, in eval mode, float32, with its own memory.

    Args:
        state_dict: Tensors by official names, or a checkpoint that holds them (`unwrap_state_dict`). Sizes come from the shapes.
        config: The official configuration, nested or flat, for what shapes do not tell: of each stage `num_heads` (else 16),
            `rotary_emb_dim` (else half of a head) and `window_size`, -1 for all (else 1023 in stages between the outermost and the
            innermost, as published).

    Raises:
        ValueError: If a tensor is missing, unknown, or of a shape that does not fit the others, naming it.

    Source:
        H-Net, arXiv:2507.07955.
    """
    tensors = unwrap_state_dict(state_dict, anchor="embeddings.weight")
    settings = _settings(tensors, Flags(config or {}))
    with torch.device("meta"):
        model = HNet(**settings)
    for name in [name for name in tensors if name.endswith(".mlp.fc1.weight")]:
        halves = tensors.pop(name).chunk(2)
        tensors |= {f"{name}.{part}": half for part, half in zip(("value", "gate"), halves, strict=True)}
    fill_entries(model, _reordered(model, tensors, to_official=False), _entries(model))
    return model.eval()


def to_official(model: HNet) -> dict[str, Tensor]:
    """Return the state dict with official names; fused and reordered tensors do not share memory with the model."""
    found = _reordered(model, take_entries(model, _entries(model)), to_official=True)
    for value in [name for name in found if name.endswith(".value")]:
        name = value.removesuffix(".value")
        found[name] = torch.cat((found.pop(value), found.pop(f"{name}.gate")))
    return found


def official_name(name: str, num_stages: int) -> str:
    """Return the official name of a parameter of ours; halves of a tensor have `.value` or `.gate` behind it.

    Args:
        name: Our name.
        num_stages: Number of stages, the innermost too.
    """
    if name in _NAMES:
        return _NAMES[name]
    match = re.fullmatch(r"stages\.(\d+)\.(.*)", name)
    assert match is not None
    stage, rest = int(match[1]), match[2]
    prefix = "backbone." + "main_network." * stage
    if rest in _STAGE_NAMES:
        return prefix + _STAGE_NAMES[rest]
    stack, rest = rest.split(".", 1)
    if stage == num_stages - 1:
        stack = "main_network"
    if layer := re.fullmatch(r"(layers\.\d+)\.(.*)", rest):
        return f"{prefix}{stack}.{layer[1]}.{_LAYER_NAMES.get(layer[2], layer[2])}"
    return f"{prefix}{stack}.rms{rest}"


def _entries(model: HNet) -> list[Entry]:
    count = len(model.stages)
    return [
        Entry(name, (official_name(name, count),), tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    ]


def _reordered(model: HNet, tensors: Mapping[str, Tensor], *, to_official: bool) -> dict[str, Tensor]:
    """Return the tensors with the rows of queries and keys in our order, or in the official one."""
    found = dict(tensors)
    for index, stage in enumerate(cast("list[Stage]", list(model.stages))):
        sizes = stage.encoder.sizes
        half, size = sizes.rotary_dim // 2, sizes.dim // sizes.num_heads
        order = torch.arange(size)
        order[: 2 * half] = order[: 2 * half].unflatten(0, (2, half)).T.flatten()
        order = order.argsort() if to_official else order
        for name in model.state_dict():
            official = official_name(name, len(model.stages))
            if name.startswith(f"stages.{index}.") and name.endswith(".qkv.weight") and official in found:
                parts = found[official]
                if parts.shape != (3 * sizes.dim, sizes.dim):
                    continue  # `fill_entries` says what is wrong with it.
                heads = parts.unflatten(0, (3, sizes.num_heads, size))
                found[official] = torch.cat((heads[:2, :, order], heads[2:])).flatten(0, 2)
    return found


def _settings(tensors: Mapping[str, Tensor], flags: Flags) -> dict[str, Any]:
    vocab_size, outer = shape_of(tensors, "embeddings.weight", 2)
    layout, dims, ffn_dims, mamba = _read_stages(tensors, "backbone.", outer)
    count = len(dims)
    between = [_WINDOW if 0 < stage < count - 1 else -1 for stage in range(count)]
    heads = flags.get("num_heads", [_HEADS] * count)
    windows = [None if window < 0 else int(window) for window in flags.get("window_size", between)]
    rotary = flags.get("rotary_emb_dim", None)
    return {
        "layout": layout,
        "dims": dims,
        "ffn_dims": ffn_dims,
        "num_heads": [int(number) for number in heads],
        "windows": windows,
        "rotary_dims": None if rotary is None else [int(number) for number in rotary],
        "vocab_size": vocab_size,
        "residual_bias": "uniform",
        **mamba,
    }


def _read_stages(
    tensors: Mapping[str, Tensor], prefix: str, dim: int
) -> tuple[list[Any], list[int], list[int], dict[str, int]]:
    """Return the layout, widths, hidden channels of MLPs and sizes of Mamba-2 of the stages under a prefix."""
    dim += shape_of(tensors, f"{prefix}pad_dimension", 1)[0] if f"{prefix}pad_dimension" in tensors else 0
    is_innermost = f"{prefix}routing_module.q_proj_layer.weight" not in tensors
    parts = ["main_network"] if is_innermost else ["encoder", "decoder"]
    words, hidden, mamba = [], 128, {}
    for part in parts:
        word = ""
        for layer in range(count_of(tensors, f"{prefix}{part}.layers")):
            name = f"{prefix}{part}.layers.{layer}"
            has_mlp, is_mamba = f"{name}.mlp.fc1.weight" in tensors, f"{name}.mixer.in_proj.weight" in tensors
            if has_mlp:
                hidden = shape_of(tensors, f"{name}.mlp.fc1.weight", 2)[0] // 2
            if is_mamba:
                mamba = _mamba_sizes(tensors, f"{name}.mixer", dim)
            letter = "m" if is_mamba else "t"
            word += (letter.upper() if has_mlp else letter) + "1"
        words.append(word)
    if is_innermost:
        return [_short(words[0])], [dim], [hidden], mamba
    layout, dims, ffn_dims, inner_mamba = _read_stages(tensors, f"{prefix}main_network.", dim)
    return (
        [_short(words[0]), layout, _short(words[1])],
        [dim, *dims],
        [hidden, *ffn_dims],
        {**inner_mamba, **mamba},
    )


def _mamba_sizes(tensors: Mapping[str, Tensor], name: str, dim: int) -> dict[str, int]:
    (inner,) = shape_of(tensors, f"{name}.norm.weight", 1)
    (heads,) = shape_of(tensors, f"{name}.dt_bias", 1)
    channels, _, width = shape_of(tensors, f"{name}.conv1d.weight", 3)
    return {
        "state_dim": (channels - inner) // 2,
        "conv_width": width,
        "expand": inner // dim,
        "head_dim": inner // heads,
    }


def _short(word: str) -> str:
    """Return the word with runs counted: "m1m1T1" as "m2T1"."""
    runs = re.finditer(r"(.)\1*", parse_layers(word))
    return "".join(f"{run[1]}{len(run[0])}" for run in runs)
