"""ResTok's transformer encoder: image tokens that merge into coarser levels, and latent tokens that read them.

Letters: `b` batch, `n` latent tokens, `m` image tokens of the coarsest level, `d` channels of a token, `z` channels of the map.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.vit import ViTBlock
from hiergen.nn.constants import Constants
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.depth.stack import BlockStack, Stream
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import grid_positions, rotary_table
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.tokenizers.restok.config import Grid, Merge, ResTokConfig


class ResTokEncoder(CheckpointedModule):
    """A map of features to latent tokens, coarse to fine.

    The sequence is `[image levels, coarsest first | latent levels, coarsest first]`. A query sees its own level and all before it,
    so image tokens never see latent tokens, and a latent level never sees a finer one.

    Source:
        ResTok, arXiv:2601.03955. `merge="even"` and the residual that is zero at the kept tokens are what its code does; the paper
        describes average pooling.
    """

    def __init__(self, config: ResTokConfig) -> None:
        super().__init__()
        self.layout = config
        self.image_grids, self.merge_blocks = config.image_grids, config.merge_blocks
        self.level_sizes, self.pooling_grids = config.level_sizes, config.pooling_grids
        dim = config.encoder_dim
        stride = 1 if config.cnn_encoder else config.convnet.stride
        channels = config.z_channels if config.cnn_encoder else config.in_channels
        self.patch_embed = nn.Conv2d(channels, dim, stride, stride=stride)
        self.level_embedding = nn.Parameter(torch.empty(config.num_image_levels, dim))
        self.latent_level_embedding = nn.Parameter(torch.empty(len(config.level_sizes), dim))
        self.norm_in = nn.LayerNorm(dim)
        blocks = (ViTBlock(dim, config.encoder_heads, int(dim * config.mlp_ratio)) for _ in range(config.encoder_depth))
        self.blocks = BlockStack(blocks, part_plan(config.plan, "encoder", "decoder"), dim=dim)
        if self.merge_blocks and any(step.lag or step.inject for step in self.blocks.plan.steps):
            raise ValueError(
                "plan of the encoder has a step with lag 1 or inject, expected neither where levels merge: "
                "the number of tokens changes"
            )
        self.norm_out = nn.LayerNorm(dim)
        self.constants = _stage_constants(config)
        init_truncated_normal(self)
        for embedding in (self.level_embedding, self.latent_level_embedding):
            nn.init.normal_(embedding, std=dim**-0.5)

    def forward(self, features: Float[Tensor, "b z h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        """Return the normalized latent tokens and the raw tokens of the coarsest image level."""
        layout = self.layout
        features = self.patch_embed(features.to(self.patch_embed.weight.dtype))
        latents = self.initial_latents(features)
        latents = latents + expand_levels(self.latent_level_embedding, self.level_sizes)
        image = rearrange(features, "b d h w -> b (h w) d") + self.level_embedding[0]
        stream = Stream(self.norm_in(torch.cat((image, latents), dim=1)))
        constants = self.constants.on(features.device)
        stage = 0
        for index in range(self.blocks.num_steps):
            stage_inputs = constants[f"rotary_{stage}"], constants[f"mask_{stage}"]
            if index not in self.merge_blocks:
                self.blocks.advance(stream, index, *stage_inputs)
                continue
            merge = functools.partial(
                merge_coarsest, grid=self.image_grids[stage], rule=layout.merge, residual=layout.residual_image_tokens
            )
            self.blocks.advance(stream, index, *stage_inputs, merge)
            stage += 1
            coarse, rest = _split_at(stream.x, _cells(self.image_grids[stage]))
            stream.x = torch.cat((coarse + self.level_embedding[stage], rest), dim=1)
        tokens = stream.settle()
        latents = self.norm_out(tokens[:, -layout.num_latent_tokens :])
        return latents, tokens[:, : _cells(self.image_grids[-1])]

    def initial_latents(self, features: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
        """Return the map pooled to the cells of every level, coarse to fine.

        With `residual_latent_tokens` each level pools what the coarser ones leave over. The second level of one token then pools a
        map without mean: it starts at zero.
        """
        if not self.layout.latent_hierarchy:
            return F.adaptive_avg_pool1d(features.flatten(2), self.layout.num_latent_tokens).transpose(1, 2)
        levels, rest = [], features
        for grid in self.pooling_grids:
            pooled = F.adaptive_avg_pool2d(rest, grid)
            levels.append(rearrange(pooled, "b d h w -> b (h w) d"))
            if self.layout.residual_latent_tokens:
                rest = rest - F.interpolate(pooled, size=features.shape[-2:], mode="nearest")
        return torch.cat(levels, dim=1)


def merge_coarsest(
    tokens: Float[Tensor, "b n d"], *, grid: Grid, rule: Merge, residual: bool
) -> Float[Tensor, "b m d"]:
    """Return the sequence with a coarser level in front, made from its first level.

    Args:
        tokens: Sequence that begins with an image level of shape `grid`, row-major.
        grid: Rows and columns of the first level.
        rule: "average" halves both sides (only an even one, if the other is odd) and takes means. "even" keeps the tokens of the
            even columns.
        residual: Subtract the coarser level, upsampled, from the finer one.
    """
    level, rest = _split_at(tokens, _cells(grid))
    if rule == "even":
        coarse = level[:, ::2]
        upsampled = coarse.repeat_interleave(2, dim=1)
    else:
        rows, columns = (2 if side % 2 == 0 else 1 for side in grid)
        cells = rearrange(level, "b (h r w c) d -> b (h w) (r c) d", r=rows, c=columns, w=grid[1] // columns)
        coarse = cells.mean(dim=2)
        upsampled = rearrange(
            coarse[:, :, None].expand_as(cells),
            "b (h w) (r c) d -> b (h r w c) d",
            r=rows,
            c=columns,
            w=grid[1] // columns,
        )
    return torch.cat((coarse, level - upsampled if residual else level, rest), dim=1)


def expand_levels(embedding: Float[Tensor, "levels d"], sizes: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return one row per token: row i of `embedding` for each of the `sizes[i]` tokens of level i."""
    return torch.cat([embedding[i : i + 1].expand(size, -1) for i, size in enumerate(sizes)])


def _stage_constants(config: ResTokConfig) -> Constants:
    """Return the rotary table and the attention mask of every stage; a merge, which makes the sequence longer, ends a stage."""
    tensors = {}
    for stage in range(config.num_image_levels):
        grids = config.image_grids[stage::-1]
        positions, offset = [], 0
        for grid in grids:
            positions.append(grid_positions(*grid, device="cpu") + offset)
            offset += _cells(grid)
        latents = torch.arange(config.num_latent_tokens, dtype=torch.float64, device="cpu") + offset
        positions.append(latents[:, None].expand(-1, 2))
        head_dim = config.encoder_dim // config.encoder_heads
        tensors[f"rotary_{stage}"] = rotary_table(torch.cat(positions), head_dim, theta=config.rotary_theta)
        # A copy: `dense` hands out a tensor that is shared between models.
        mask = BlockCausalMask((*(_cells(grid) for grid in grids), *config.level_sizes))
        tensors[f"mask_{stage}"] = mask.dense("cpu").clone()
    return Constants(**tensors)


def _cells(grid: Grid) -> int:
    return grid[0] * grid[1]


def _split_at(tokens: Tensor, position: int) -> tuple[Tensor, Tensor]:
    return tokens[:, :position], tokens[:, position:]
