"""Official checkpoints of LightningDiT and SiT -> `FlowTransformer`.

The layout is that of the LightningDiT repository at commit 2725fed; SiT's is the same without the options of LightningDiT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor

from hiergen.convert.state_dicts import check_settings, count_of, fill_model, shape_of, unwrap_state_dict
from hiergen.generators.flow.model import FlowTransformer
from hiergen.nn.latent_statistics import LatentStatistics

#: Our name pattern and the official one; the first that matches a whole name applies, other names are the same in both.
_NAMES = (
    (r"position_table\.value", "pos_embed"),
    (r"patch_embed\.(.+)", r"x_embedder.proj.\1"),
    (r"time_embed\.linear1\.(.+)", r"t_embedder.mlp.0.\1"),
    (r"time_embed\.linear2\.(.+)", r"t_embedder.mlp.2.\1"),
    (r"label_embed\.weight", "y_embedder.embedding_table.weight"),
    (r"(blocks\.\d+)\.attention\.(.+)", r"\1.attn.\2"),
    (r"(blocks\.\d+)\.ffn\.(.+)", r"\1.mlp.\2"),
    (r"(blocks\.\d+)\.modulation\.(.+)", r"\1.adaLN_modulation.1.\2"),
    (r"final_norm\.weight", "final_layer.norm_final.weight"),
    (r"final_linear\.(.+)", r"final_layer.linear.\1"),
    (r"final_modulation\.(.+)", r"final_layer.adaLN_modulation.1.\1"),
)
_ROTARY = ("feat_rope.freqs_cos", "feat_rope.freqs_sin")

#: Heads of the published widths, for layouts in which no shape tells them.
_HEADS_OF_WIDTH = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24, 1792: 28}


def from_official(state_dict: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> FlowTransformer:
    """Return the model of an official checkpoint, with its dtype, its position tables and sizes read from its shapes.

    Args:
        state_dict: Tensors by their official names, or a checkpoint that holds them under "ema" or "model" (the average is taken
            where both are there).
        config: Entries of `FlowTransformer`'s config that shapes do not tell, or that shall differ: `latent_mean` and
            `latent_std` (`statistics_from_official`), `num_heads` of a SiT of unpublished width, training settings.

    Raises:
        ValueError: If a tensor is missing, surplus or of a wrong shape, a size cannot be read, or `config` has an unknown entry.
    """
    tensors = unwrap_state_dict(state_dict, containers=("ema", "model", "state_dict"))
    check_settings(config or {}, FlowTransformer)
    settings = {**_infer_config(tensors), **(config or {})}
    if not settings["num_heads"]:
        raise ValueError(
            f"no tensor tells the heads of a model of dim {settings['dim']}: pass config={{'num_heads': …}}"
        )
    with init_empty_weights(include_buffers=False):
        model = FlowTransformer(**settings)
    if model.rotary is not None and not any(name in tensors for name in _ROTARY):
        # Derived from the grid alone, so a checkpoint without the tables is complete.
        tensors |= dict(zip(_ROTARY, model.rotary(), strict=True))
    ours, names = _rename(tensors, model.state_dict())
    fill_model(model, ours, names=names)
    return model.eval()


def statistics_from_official(statistics: Mapping[str, Tensor]) -> LatentStatistics:
    """Return the latent statistics of LightningDiT's file: tensors `mean` and `std` of shape (1, c, 1, 1).

    Raises:
        ValueError: If one of them is missing or not of that shape.
    """
    for name in ("mean", "std"):
        value = statistics.get(name)
        if value is None or value.ndim != 4 or value.numel() != value.shape[1]:
            got = "nothing" if value is None else f"shape {tuple(value.shape)}"
            raise ValueError(f"latent statistic {name!r} is {got}, expected a tensor of shape (1, c, 1, 1)")
    return LatentStatistics(*(tuple(statistics[name].flatten().tolist()) for name in ("mean", "std")))


def _rename(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by our names, those that we have no name for by their own, and the official name of each of ours."""
    left = dict(tensors)
    if all(name in left for name in _ROTARY):
        left["rotary.value"] = torch.stack([left.pop(name) for name in _ROTARY])
    if left["pos_embed"].shape[0] == 1:
        left["pos_embed"] = left["pos_embed"].squeeze(0)
    left["x_embedder.proj.weight"] = left["x_embedder.proj.weight"].flatten(1)
    names = {name: _official_name(name) for name in wanted}
    ours = {name: left.pop(official) for name, official in names.items() if official in left}
    names["rotary.value"] = " and ".join(_ROTARY)
    return {**ours, **left}, names


def _official_name(name: str) -> str:
    return next((re.sub(ours, theirs, name) for ours, theirs in _NAMES if re.fullmatch(ours, name)), name)


def _infer_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    dim, channels, patch_size, _ = shape_of(tensors, "x_embedder.proj.weight", 4)
    _, num_tokens, _ = shape_of(tensors, "pos_embed", 3)
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"'pos_embed' holds {num_tokens} positions, expected a square number")
    depth = count_of(tensors, "blocks")
    is_swiglu = "blocks.0.mlp.w12.weight" in tensors
    hidden = shape_of(tensors, "blocks.0.mlp.w3.weight" if is_swiglu else "blocks.0.mlp.fc2.weight", 2)[1]
    grid = side * patch_size
    out = shape_of(tensors, "final_layer.linear.weight", 2)[0]
    return {
        "level_specs": [{"num_tokens": grid**2, "grid": [grid, grid], "dim": channels}],
        "num_classes": shape_of(tensors, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "dim": dim,
        "depth": depth,
        "num_heads": _num_heads(tensors, dim),
        "patch_size": patch_size,
        "mlp_ratio": _mlp_ratio(hidden, dim, is_swiglu),
        "norm": "rms" if "blocks.0.norm1.weight" in tensors else "layer",
        "ffn": "swiglu" if is_swiglu else "gelu",
        "use_rotary": _ROTARY[0] in tensors,
        "use_shift": shape_of(tensors, "blocks.0.adaLN_modulation.1.weight", 2)[0] == 6 * dim,
        "use_qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "has_double_output": out == 2 * channels * patch_size**2,
        "time_distribution": "logit_normal" if is_swiglu else "uniform",
        "cosine_weight": 1.0 if is_swiglu else 0.0,
    }


def _num_heads(tensors: Mapping[str, Tensor], dim: int) -> int:
    for name in (_ROTARY[0], "blocks.0.attn.q_norm.weight"):
        if name in tensors:
            return dim // tensors[name].shape[-1]
    # An unpublished width without tables needs the config; 0 lets the model name the argument if it is not there.
    return _HEADS_OF_WIDTH.get(dim, 0)


def _mlp_ratio(hidden: int, dim: int, is_swiglu: bool) -> float:
    """Return a ratio for which `make_feed_forward` gives `hidden` channels: 4 wherever it does."""
    wide = math.ceil(hidden * 3 / 2) if is_swiglu else hidden
    for ratio in (4.0, wide / dim):
        if (2 * int(dim * ratio) // 3 if is_swiglu else int(dim * ratio)) == hidden:
            return ratio
    # wide / dim times dim may round to just below wide.
    return (wide + 0.25) / dim
