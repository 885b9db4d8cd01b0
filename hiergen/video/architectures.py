"""Where each of diffusers' video transformers is entered and left: the table that the adapter works from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from hiergen.video import reordering
from hiergen.video.processors import (
    CogVideoXProcessor,
    HunyuanVideoProcessor,
    LTX2Processor,
    LTXProcessor,
    MochiProcessor,
    PyramidProcessor,
    WanProcessor,
)
from hiergen.video.reordering import Entrance, Grid

#: Arguments of a transformer's forward pass by name.
Inputs = Mapping[str, Any]
#: Functions of `reordering` by the name of a module or of an argument.
Reorderings = Mapping[str, Callable[[Entrance, Any], Any]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One class of transformers.

    Attributes:
        attentions: The self-attention modules over video tokens, in the order in which they run.
        processor: Class that replaces the processors of these modules.
        grid: Frames, rows and columns of tokens in a forward pass.
        enters: By name the modules whose outputs hold a value per token, and the function that reorders these outputs.
        leaves_at: Name of the module whose first input is put back in raster order.
        arguments: By name the arguments that hold a value per token, and the function that reorders them.
        fixed_frames: How many of the first frames keep their tokens in place, because the model treats them by position.
        by_frame: Whether a pass with these arguments treats every frame by its position, so that tokens stay inside frames.
        raster_modules: Modules between the layers whose first input and output have to be in raster order.
    """

    attentions: Callable[[Any], list[Any]]
    processor: type[PyramidProcessor]
    grid: Callable[[Any, Inputs], Grid]
    enters: Reorderings
    leaves_at: str = "norm_out"
    arguments: Reorderings = dataclasses.field(default_factory=dict)
    fixed_frames: Callable[[Any], int] = lambda model: 0
    by_frame: Callable[[Inputs], bool] = lambda inputs: False
    raster_modules: Callable[[Any], Iterable[nn.Module]] = lambda model: ()


def _volume_grid(model: Any, inputs: Inputs) -> Grid:
    """Return the grid of patches of (b, channels, frames, rows, columns)."""
    frames, rows, columns = inputs["hidden_states"].shape[2:]
    patch = model.config.patch_size
    if isinstance(patch, int):
        patch = (getattr(model.config, "patch_size_t", 1), patch, patch)
    return frames // patch[0], rows // patch[1], columns // patch[2]


def _cogvideox_grid(model: Any, inputs: Inputs) -> Grid:
    frames, _, rows, columns = inputs["hidden_states"].shape[1:]
    patch = model.config.patch_size
    return frames // (model.config.patch_size_t or 1), rows // patch, columns // patch


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


_WAN = Architecture(
    attentions=lambda model: [block.attn1 for block in model.blocks],
    processor=WanProcessor,
    grid=_volume_grid,
    enters={
        "rope": reordering.reorder_batched_tables,
        "patch_embedding": reordering.reorder_volume,
        "condition_embedder": reordering.reorder_wan_modulation,
    },
)
_HUNYUAN = Architecture(
    attentions=lambda model: [block.attn for block in (*model.transformer_blocks, *model.single_transformer_blocks)],
    processor=HunyuanVideoProcessor,
    grid=_volume_grid,
    enters={"rope": reordering.reorder_flat_tables, "x_embedder": reordering.reorder_tokens},
    # Image-to-video by token replacement: the first frame has a modulation of its own.
    fixed_frames=lambda model: int(model.config.image_condition_type == "token_replace"),
)
_LTX = Architecture(
    attentions=lambda model: [block.attn1 for block in model.transformer_blocks],
    processor=LTXProcessor,
    grid=_ltx_grid,
    enters={
        "rope": reordering.reorder_batched_tables,
        "proj_in": reordering.reorder_tokens,
        "time_embed": reordering.reorder_ltx_modulation,
    },
)

ARCHITECTURES: dict[str, Architecture] = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": dataclasses.replace(
        _WAN,
        attentions=lambda model: [block.attn1 for block in (*model.vace_blocks, *model.blocks)],
        enters={**_WAN.enters, "vace_patch_embedding": reordering.reorder_control},
    ),
    "WanAnimateTransformer3DModel": dataclasses.replace(
        _WAN,
        enters={**_WAN.enters, "pose_patch_embedding": reordering.reorder_later_frames},
        # The first frame is the picture of the character; poses begin at the second, and faces are read frame by frame.
        fixed_frames=lambda model: 1,
        raster_modules=lambda model: model.face_adapter,
    ),
    "SkyReelsV2Transformer3DModel": dataclasses.replace(
        _WAN,
        enters={name: _WAN.enters[name] for name in ("rope", "patch_embedding")},
        # Diffusion forcing gives every frame its own timestep; the model repeats it over the tokens of the frame.
        by_frame=lambda inputs: bool(inputs.get("enable_diffusion_forcing")),
    ),
    "CogVideoXTransformer3DModel": Architecture(
        attentions=_LTX.attentions,
        processor=CogVideoXProcessor,
        grid=_cogvideox_grid,
        enters={"patch_embed": reordering.reorder_tokens},
        leaves_at="norm_final",
        arguments={"image_rotary_emb": reordering.reorder_flat_tables},
    ),
    "HunyuanVideoTransformer3DModel": _HUNYUAN,
    "HunyuanVideo15Transformer3DModel": dataclasses.replace(
        _HUNYUAN,
        attentions=lambda model: [block.attn for block in model.transformer_blocks],
        fixed_frames=lambda model: 0,
    ),
    "LTXVideoTransformer3DModel": _LTX,
    "LTX2VideoTransformer3DModel": dataclasses.replace(
        _LTX,
        processor=LTX2Processor,
        # The stream of sound keeps its order: it meets the video in cross-attention alone, which does not ask for one.
        enters={
            "rope": reordering.reorder_ltx2_tables,
            "cross_attn_rope": reordering.reorder_ltx2_tables,
            "proj_in": reordering.reorder_tokens,
            "time_embed": reordering.reorder_ltx_modulation,
            "av_cross_attn_video_scale_shift": reordering.reorder_ltx_modulation,
            "av_cross_attn_video_a2v_gate": reordering.reorder_ltx_modulation,
        },
        arguments={"video_keyframes_mask": reordering.reorder_tokens},
    ),
    "MochiTransformer3DModel": Architecture(
        attentions=_LTX.attentions,
        processor=MochiProcessor,
        grid=_volume_grid,
        enters={"rope": reordering.reorder_flat_tables, "patch_embed": reordering.reorder_frames},
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
