"""Where each of diffusers' video transformers is entered and left: the table that the adapter works from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hiergen.video import reordering
from hiergen.video.processors import (
    CogVideoXProcessor,
    HunyuanVideoProcessor,
    LTXProcessor,
    PyramidProcessor,
    WanProcessor,
)
from hiergen.video.reordering import Entrance, Grid

#: Arguments of a transformer's forward pass by name.
Inputs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One class of transformers.

    Attributes:
        attentions: The self-attention modules over video tokens, in order of depth.
        processor: Class that replaces the processors of these modules.
        grid: Frames, rows and columns of tokens in a forward pass.
        enters: By name the modules whose outputs hold a value per token, and the function that reorders these outputs.
        leaves_at: Name of the module whose first input is put back in raster order.
        rotary_argument: Argument that holds rotary tables; None where the model makes them itself.
        fixed_frames: How many of the first frames keep their tokens in place, because the model treats them by position.
    """

    attentions: Callable[[Any], list[Any]]
    processor: type[PyramidProcessor]
    grid: Callable[[Any, Inputs], Grid]
    enters: Mapping[str, Callable[[Entrance, Any], Any]]
    leaves_at: str
    rotary_argument: str | None = None
    fixed_frames: Callable[[Any], int] = lambda model: 0


def _wan_grid(model: Any, inputs: Inputs) -> Grid:
    frames, rows, columns = inputs["hidden_states"].shape[2:]
    patch = model.config.patch_size
    return frames // patch[0], rows // patch[1], columns // patch[2]


def _cogvideox_grid(model: Any, inputs: Inputs) -> Grid:
    frames, _, rows, columns = inputs["hidden_states"].shape[1:]
    patch = model.config.patch_size
    return frames // (model.config.patch_size_t or 1), rows // patch, columns // patch


def _hunyuan_grid(model: Any, inputs: Inputs) -> Grid:
    frames, rows, columns = inputs["hidden_states"].shape[2:]
    patch = model.config.patch_size
    return frames // model.config.patch_size_t, rows // patch, columns // patch


def _ltx_grid(model: Any, inputs: Inputs) -> Grid:
    """Return the grid that the caller gave: LTX takes its tokens as one sequence."""
    num_tokens = inputs["hidden_states"].shape[1]
    frames, rows, columns = (inputs.get(name) for name in ("num_frames", "height", "width"))
    if frames is None or rows is None or columns is None or frames * rows * columns != num_tokens:
        raise ValueError(
            f"LTX was given {num_tokens} video tokens and num_frames={frames}, height={rows}, width={columns}: tokens "
            "outside of one grid (as conditioning frames are) have no place in order 'gilbert' or 'tiles'; use a PSAConfig "
            "with order='raster'"
        )
    return frames, rows, columns


ARCHITECTURES: dict[str, Architecture] = {
    "WanTransformer3DModel": Architecture(
        attentions=lambda model: [block.attn1 for block in model.blocks],
        processor=WanProcessor,
        grid=_wan_grid,
        enters={
            "rope": reordering.reorder_batched_tables,
            "patch_embedding": reordering.reorder_volume,
            "condition_embedder": reordering.reorder_wan_modulation,
        },
        leaves_at="norm_out",
    ),
    "CogVideoXTransformer3DModel": Architecture(
        attentions=lambda model: [block.attn1 for block in model.transformer_blocks],
        processor=CogVideoXProcessor,
        grid=_cogvideox_grid,
        enters={"patch_embed": reordering.reorder_tokens},
        leaves_at="norm_final",
        rotary_argument="image_rotary_emb",
    ),
    "HunyuanVideoTransformer3DModel": Architecture(
        attentions=lambda model: [
            block.attn for block in (*model.transformer_blocks, *model.single_transformer_blocks)
        ],
        processor=HunyuanVideoProcessor,
        grid=_hunyuan_grid,
        enters={"rope": reordering.reorder_flat_tables, "x_embedder": reordering.reorder_tokens},
        leaves_at="norm_out",
        # Image-to-video by token replacement: the first frame has a modulation of its own.
        fixed_frames=lambda model: int(model.config.image_condition_type == "token_replace"),
    ),
    "LTXVideoTransformer3DModel": Architecture(
        attentions=lambda model: [block.attn1 for block in model.transformer_blocks],
        processor=LTXProcessor,
        grid=_ltx_grid,
        enters={
            "rope": reordering.reorder_batched_tables,
            "proj_in": reordering.reorder_tokens,
            "time_embed": reordering.reorder_ltx_modulation,
        },
        leaves_at="norm_out",
    ),
}


def architecture_of(model: nn.Module) -> Architecture:
    """Return the entry of a model's class, or of the nearest class that it derives from.

    Raises:
        TypeError: If there is no such entry.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in ARCHITECTURES:
            return ARCHITECTURES[kind.__name__]
    raise TypeError(
        f"pyramid attention knows no {type(model).__name__}, expected one of {', '.join(ARCHITECTURES)} of diffusers"
    )
