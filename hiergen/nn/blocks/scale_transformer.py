"""Transformer blocks over a sequence of maps of growing resolution.

Letters: `b` batch, `n` tokens, `d` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention as dense_attention
from hiergen.nn.blocks.transformer import TransformerBlock
from hiergen.nn.constants import Constants
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.level_masks import AttentionForm, MaskKind, ScaleAttention, ScaleMask
from hiergen.nn.positions import common_frame_positions, rotary_table
from hiergen.nn.running.checkpointing import CheckpointedModule

PositionKind = Literal["rotary", "learned"]


class ScaleTransformer(CheckpointedModule):
    """Pre-norm blocks whose tokens know their level (a learned embedding) and their place on the frame of the finest level.

    Args:
        dim: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads; `dim / num_heads` must be a multiple of 4 with rotary positions.
        sides: Sides of the square levels, coarse to fine.
        mask: Rule of which levels a level sees (`ScaleMask`).
        attention: How the rule is carried out (`ScaleAttention`).
        positions: "rotary" turns queries and keys by (row, column) on the common frame; "learned" adds a table instead.
        plan: Steps as JSON (`hiergen.nn.depth.plan`); slices only under a full mask. None runs each block once.

    Raises:
        ValueError: If the kind of positions is unknown or a size does not fit.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        sides: Sequence[int],
        mask: MaskKind = "scale_causal",
        attention: AttentionForm = "grouped",
        positions: PositionKind = "rotary",
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        if positions not in get_args(PositionKind):
            raise ValueError(f"positions is {positions!r}, expected one of {get_args(PositionKind)}")
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.mask = ScaleMask(tuple(side**2 for side in sides), mask)
        self._attend = ScaleAttention(self.mask, attention)
        levels = torch.arange(len(sides), device="cpu")
        levels = levels.repeat_interleave(torch.tensor(self.mask.sizes, device="cpu"))
        tables = {"levels": levels}
        self.position_embed: nn.Parameter | None = None
        if positions == "rotary":
            frame = common_frame_positions([(side, side) for side in sides])
            tables["rotary"] = rotary_table(frame, dim // num_heads)
        else:
            self.position_embed = nn.Parameter(torch.empty(len(levels), dim))
        self._constants = Constants(**tables)
        self.level_embed = nn.Parameter(torch.empty(len(sides), dim))
        self.blocks = BlockStack(
            (TransformerBlock(dim, num_heads) for _ in range(depth)),
            plan,
            dim=dim,
            num_tokens=len(levels) if self.mask.is_full else None,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings from N(0, 0.02)."""
        for table in (self.level_embed, self.position_embed):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the tokens of all levels, or of the first levels alone, after the blocks."""
        length = tokens.shape[1]
        tables = self._constants.on(tokens.device)
        x = tokens + self.level_embed[tables["levels"][:length]]
        if self.position_embed is not None:
            x = x + self.position_embed[:length]
        rotary = tables["rotary"][:, :length] if "rotary" in tables else None
        # Slices end where no level ends; they are for full masks alone.
        return self.blocks(x, rotary, attend=dense_attention if self.blocks.is_sliced else self._attend)
