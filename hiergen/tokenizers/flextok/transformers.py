"""FlexTok's two transformers: a map to the registers' latents, and a noisy map with the codes to the velocity of a flow.

Letters: `b` batch, `c h w` map, `p` patches, row-major, `n` registers, `k` channels of a code, `d` channels of a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.time_embedding import TimeEmbedding
from hiergen.nn.constants import Constants, Table
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.initialization import xavier_linears
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.nested_dropout import prefix_mask
from hiergen.nn.positions import grid_positions, sincos_embedding
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.tokenizers.flextok.blocks import RegisterBlock, TwoStreamBlock
from hiergen.tokenizers.flextok.config import FlexTokConfig


class _PatchEmbed(nn.Module):
    """A map to one token per patch, with a fixed position: a linear layer of the patch, whose numbers go row, column, channel."""

    def __init__(self, dim: int, config: FlexTokConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.patch_dim, dim)
        # Channels first, as saved by the published program. Its first half encodes the row, unlike that of other models.
        positions = grid_positions(config.side, config.side, device="cpu").flip(1)
        self.position_table = Table(sincos_embedding(positions, dim).T.contiguous())

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p d"]:
        size = self.patch_size
        patches = rearrange(x, "b c (s p) (t q) -> b (s t) (p q c)", p=size, q=size)
        tokens = self.proj(patches.to(self.proj.weight.dtype))
        return tokens + self.position_table().T.to(tokens.dtype)


def _init(module: nn.Module, zero: list[nn.Linear]) -> None:
    """Draw every linear layer Xavier uniform, queries, keys and values apart, but for those that start at 0; learned tables N(0, 0.02²)."""
    xavier_linears(module)
    for name, layer in module.named_modules():
        if name.endswith("attention.qkv") and isinstance(layer, nn.Linear):
            for part in layer.get_parameter("weight").data.chunk(3):
                nn.init.xavier_uniform_(part)
    for layer in zero:
        nn.init.zeros_(layer.weight)
    for _, table in module.named_parameters(recurse=False):
        nn.init.trunc_normal_(table, std=0.02)


class FlexTokEncoder(CheckpointedModule):
    """`[patches | registers]` to latents: patches see all patches, a register all patches and the registers up to itself.

    So the first latents do not depend on how many there are.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.patch_embed = _PatchEmbed(dim, config)
        self.registers = nn.Parameter(torch.empty(config.num_registers, dim))
        blocks = (RegisterBlock(dim, config.encoder_heads) for _ in range(config.encoder_depth))
        self.blocks = BlockStack(blocks, part_plan(config.plan, "encoder", "decoder"), dim=dim)
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False)
        self.to_codes = nn.Linear(dim, len(config.code_levels))
        mask = BlockCausalMask((config.side**2, *[1] * config.num_registers))
        self.constants = Constants(mask=mask.dense("cpu"))
        # Latents that are all 0 have no direction in which to spread.
        _init(self, [] if config.spread_weight else [self.to_codes])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """Return the latents of a map before they are quantized."""
        tokens = torch.cat((self.patch_embed(x), self.registers.expand(len(x), -1, -1)), dim=1)
        mask = self.constants.on(tokens.device)["mask"]
        tokens = self.blocks(tokens, mask)
        return self.to_codes(self.norm_out(tokens[:, -len(self.registers) :]))


class FlexTokDecoder(CheckpointedModule):
    """`[patches of a noisy map | codes]` under full attention to the velocity at the patches.

    Codes beyond a sample's prefix become one learned vector, without a position; without a condition all become another one.
    """

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        dim, self.side, self.patch_size = config.decoder_dim, config.side, config.patch_size
        self.time_factor = 1000 / config.max_time
        self.embed = nn.Linear(len(config.code_levels), dim)
        self.register_positions = nn.Parameter(torch.empty(dim, config.num_registers))
        self.dropped_token = nn.Parameter(torch.empty(dim))
        self.null_token = nn.Parameter(torch.empty(dim))
        self.patch_embed = _PatchEmbed(dim, config)
        self.time_embed = TimeEmbedding(dim, period=256.0)
        sizes = (config.side**2, config.num_registers)
        blocks = (TwoStreamBlock(dim, config.decoder_heads, sizes) for _ in range(config.decoder_depth))
        self.blocks = BlockStack(blocks, part_plan(config.plan, "decoder", "encoder"), dim=dim)
        self.norm_out = nn.LayerNorm(dim, elementwise_affine=False)
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.final_linear = nn.Linear(dim, config.patch_dim)
        modulations = [block.modulation for block in self.blocks.unwrapped]
        _init(self, [*modulations, self.final_modulation, self.final_linear])

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        codes: Float[Tensor, "b n k"],
        lengths: Int[Tensor, " b"],
        is_null: Bool[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """Return the velocity, noise minus data.

        Args:
            x: time noise + (1 - time) data.
            time: Time of each sample, 0 (data) to 1 (noise).
            codes: Codes of all registers; those beyond a prefix are not read.
            lengths: Registers of each sample that are read.
            is_null: Whether a sample's codes are not read at all.
        """
        registers = self.embed(codes.to(self.embed.weight.dtype)) + self.register_positions.T
        present = prefix_mask(lengths, codes.shape[1])
        registers = torch.where(present[..., None], registers, self.dropped_token)
        registers = torch.where(is_null[:, None, None], self.null_token, registers)
        patches = self.patch_embed(x)
        tokens = torch.cat((patches, registers.to(patches.dtype)), dim=1)
        condition = self.time_embed(time * self.time_factor)
        tokens = self.blocks(tokens, condition)
        shift, scale = self.final_modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        out = self.final_linear(self.norm_out(tokens[:, : patches.shape[1]]) * (1 + scale) + shift)
        size = self.patch_size
        return rearrange(out, "b (s t) (p q c) -> b c (s p) (t q)", s=self.side, p=size, q=size)
