"""Where each of diffusers' video transformers is entered and left: the one table that the adapter works from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from hiergen.video import reordering
from hiergen.video.processors import PyramidProcessor, WanProcessor
from hiergen.video.reordering import Entrance, Grid

#: Arguments of a transformer's forward pass by name.
Inputs = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One class of transformers.

    Attributes:
        attentions: The self-attention modules over video tokens, in order of depth.
        processor: What replaces their processors.
        grid: Frames, rows and columns of tokens.
        enters: Modules whose outputs are by token, and what to do with them.
        leaves_at: The module whose first input is put back in raster order.
        rotary_argument: The argument that holds rotary tables, where the model does not make them.
    """

    attentions: Callable[[Any], list[Any]]
    processor: type[PyramidProcessor]
    grid: Callable[[Any, Inputs], Grid]
    enters: Mapping[str, Callable[[Entrance, Any], Any]]
    leaves_at: str
    rotary_argument: str | None = None


def _wan_grid(model: Any, inputs: Inputs) -> Grid:
    frames, rows, columns = inputs["hidden_states"].shape[2:]
    patch = model.config.patch_size
    return frames // patch[0], rows // patch[1], columns // patch[2]


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
}


def architecture_of(model: nn.Module) -> Architecture:
    """Return the entry of a model's class or of the nearest class that it derives from.

    Raises:
        TypeError: If there is none.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in ARCHITECTURES:
            return ARCHITECTURES[kind.__name__]
    raise TypeError(
        f"pyramid attention knows no {type(model).__name__}, expected one of {', '.join(ARCHITECTURES)} of diffusers"
    )
