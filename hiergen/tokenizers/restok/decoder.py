"""ResTok's transformer decoder: codes of a prefix of the levels to the map that the convolutional decoder turns into an image.

Letters: `b` batch, `n` latent tokens, `c` channels of a code, `d` channels of a token, `z` channels of the map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.nn.blocks.vit import ViTBlock
from hiergen.nn.constants import Constants
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.positions import grid_positions, rotary_table
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.tokenizers.restok.config import ResTokConfig
from hiergen.tokenizers.restok.encoder import expand_levels


class LevelLinear(nn.Module):
    """One linear layer per level for the level's tokens, or one layer for all.

    Args:
        sizes: Tokens of each level, in sequence order.
        in_dim: Channels of a token that goes in.
        out_dim: Channels of a token that comes out.
        shared: Use one layer for all levels.
    """

    def __init__(self, sizes: tuple[int, ...], in_dim: int, out_dim: int, *, shared: bool) -> None:
        super().__init__()
        self.sizes = (sum(sizes),) if shared else sizes
        self.levels = nn.ModuleList(nn.Linear(in_dim, out_dim) for _ in self.sizes)
        init_truncated_normal(self)

    def forward(self, tokens: Float[Tensor, "b n before"]) -> Float[Tensor, "b n after"]:
        parts = tokens.split(list(self.sizes), dim=1)
        return torch.cat([level(part) for level, part in zip(self.levels, parts, strict=True)], dim=1)


class ResTokDecoder(CheckpointedModule):
    """Codes to a map: `[latent tokens | one mask token per cell]` under full attention, read off at the mask tokens.

    Source:
        ResTok, arXiv:2601.03955.
    """

    def __init__(self, config: ResTokConfig) -> None:
        super().__init__()
        self.layout = config
        self.level_sizes, self.pooling_grids, self.side = config.level_sizes, config.pooling_grids, config.grid_size
        dim = config.decoder_dim
        self.embed = LevelLinear(config.level_sizes, config.code_dim, dim, shared=not config.multi_projection)
        self.latent_level_embedding = nn.Parameter(torch.empty(len(config.level_sizes), dim))
        self.latent_mask_token = nn.Parameter(torch.empty(config.code_dim))
        self.image_mask_token = nn.Parameter(torch.empty(dim)) if config.learnable_image_tokens else None
        self.feature_mask_token = nn.Parameter(torch.empty(dim)) if config.decoder_features else None
        self.norm_in = nn.LayerNorm(dim)
        blocks = (ViTBlock(dim, config.decoder_heads, int(dim * config.mlp_ratio)) for _ in range(config.decoder_depth))
        self.blocks = BlockStack(blocks, part_plan(config.plan, "decoder", "encoder"), dim=dim)
        self.norm_out = nn.LayerNorm(dim)
        self.out = nn.Conv2d(dim, config.z_channels, 1)
        self.constants = _constants(config)
        init_truncated_normal(self)
        for token in (
            self.latent_level_embedding,
            self.latent_mask_token,
            self.image_mask_token,
            self.feature_mask_token,
        ):
            if token is not None:
                nn.init.normal_(token, std=dim**-0.5)

    def forward(
        self,
        codes: Float[Tensor, "b n c"],
        present: Bool[Tensor, "b n"] | None = None,
        *,
        with_features: bool = False,
    ) -> tuple[Float[Tensor, "b z h w"], Float[Tensor, "b cells d"] | None]:
        """Return the map and, if asked for, the feature tokens of a second pass.

        Args:
            codes: Codes of all levels; those that are not present are ignored.
            present: False where a code is replaced by the mask token; None where all are present.
            with_features: Also decode the same latents with the feature mask token in place of the image mask token, and return
                what comes out at its positions, unnormalized.

        Raises:
            ValueError: If `with_features` is set on a decoder that was built without `decoder_features`.
        """
        if with_features and self.feature_mask_token is None:
            raise ValueError("with_features needs a model with decoder_features=True")
        weight = self.latent_mask_token
        codes = codes.to(weight.dtype)
        if present is not None:
            codes = torch.where(present[..., None], codes, weight)
        latents = self.embed(codes)
        cells = self._image_tokens(latents)
        latents = latents + expand_levels(self.latent_level_embedding, self.level_sizes)
        if with_features:
            features = self.feature_mask_token.expand_as(cells)  # type: ignore[union-attr]
            latents, cells = torch.cat((latents, latents)), torch.cat((cells, features))
        tokens = self.norm_in(torch.cat((latents, cells), dim=1))
        rotary = self.constants.on(tokens.device)["rotary"]
        tokens = self.blocks(tokens, rotary)
        tokens = tokens[:, self.layout.num_latent_tokens :]
        image_tokens, feature_tokens = tokens.chunk(2) if with_features else (tokens, None)
        image = rearrange(self.norm_out(image_tokens), "b (h w) d -> b d h w", h=self.side)
        return self.out(image), feature_tokens

    def _image_tokens(self, latents: Tensor) -> Tensor:
        side = self.side
        if self.image_mask_token is not None:
            return repeat(self.image_mask_token, "d -> b n d", b=latents.shape[0], n=side**2)
        total = torch.zeros_like(latents[:, :1])
        levels = latents.split(list(self.level_sizes), dim=1)
        for level, (height, _) in zip(levels, self.pooling_grids, strict=True):
            cells = F.interpolate(rearrange(level, "b (h w) d -> b d h w", h=height), size=(side, side), mode="nearest")
            total = total + rearrange(cells, "b d h w -> b (h w) d")
        return total if self.layout.residual_latent_tokens else total / len(levels)


def _constants(config: ResTokConfig) -> Constants:
    tokens, side = config.num_latent_tokens, config.grid_size
    latents = torch.arange(tokens, dtype=torch.float64, device="cpu")[:, None].expand(-1, 2)
    positions = torch.cat((latents, grid_positions(side, side, device="cpu") + tokens))
    head_dim = config.decoder_dim // config.decoder_heads
    return Constants(rotary=rotary_table(positions, head_dim, theta=config.rotary_theta))
