"""TiTok's two transformers: patches and latent tokens to latent tokens, and codes with mask tokens to patches.

Letters: `b` batch, `c h w` image, `n` latent tokens, `k` channels of a code, `d` channels of a token, `p` patches, row-major.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.transformer import EncoderBlock
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.tokenizers.titok.config import TiTokConfig


class _Side(CheckpointedModule):
    """What both transformers have: learned positions of a class token, of patches and of latent tokens, norms and blocks."""

    def __init__(self, dim: int, depth: int, num_heads: int, config: TiTokConfig, plan: PlanJson | None) -> None:
        super().__init__()
        self.cls_embedding = nn.Parameter(torch.empty(1, dim))
        self.position_embedding = nn.Parameter(torch.empty(config.side**2 + 1, dim))
        self.latent_position_embedding = nn.Parameter(torch.empty(config.num_latent_tokens, dim))
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = BlockStack(
            (EncoderBlock(dim, num_heads, mlp_ratio=config.mlp_ratio, norm_eps=1e-5) for _ in range(depth)),
            plan,
            dim=dim,
        )
        self.norm_out = nn.LayerNorm(dim)

    def reset_parameters(self) -> None:
        """Draw the weights as published: truncated normal layers, attention's input matrices Xavier uniform, N(0, 1/d) tables."""
        init_truncated_normal(self)
        for block in self.blocks.unwrapped:
            # The published program's walk over layers does not see these matrices.
            nn.init.xavier_uniform_(block.get_parameter("attn.qkv.weight"))
        tables = [self.cls_embedding, self.position_embedding, self.latent_position_embedding]
        for table in (*tables, *([self.mask_token] if isinstance(self, TiTokDecoder) else [])):
            nn.init.normal_(table, std=table.shape[-1] ** -0.5)

    def transform(self, patches: Float[Tensor, "b p d"], latents: Float[Tensor, "b n d"]) -> Float[Tensor, "b all d"]:
        """Return `[class token | patches | latent tokens]` after the blocks, before the last norm."""
        first = self.cls_embedding.expand(len(patches), 1, -1)
        front = torch.cat((first, patches), dim=1) + self.position_embedding
        x = self.norm_in(torch.cat((front, latents + self.latent_position_embedding), dim=1))
        return self.blocks(x)


class TiTokEncoder(_Side):
    """An image to latent tokens."""

    def __init__(self, config: TiTokConfig) -> None:
        plan = part_plan(config.plan, "encoder", "decoder")
        super().__init__(config.encoder_dim, config.encoder_depth, config.encoder_heads, config, plan)
        self.patch_embed = nn.Conv2d(
            config.in_channels, config.encoder_dim, config.patch_size, stride=config.patch_size
        )
        self.latent_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, config.encoder_dim))
        self.reset_parameters()
        nn.init.normal_(self.latent_tokens, std=config.encoder_dim**-0.5)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the latent tokens of images in [0, 1], normalized."""
        patches = self.patch_embed(images.to(self.latent_tokens.dtype)).flatten(2).transpose(1, 2)
        x = self.transform(patches, self.latent_tokens.expand(len(images), -1, -1))
        return self.norm_out(x[:, -len(self.latent_tokens) :])


class TiTokDecoder(_Side):
    """Codes to one token per patch: mask tokens first, codes last."""

    def __init__(self, config: TiTokConfig) -> None:
        plan = part_plan(config.plan, "decoder", "encoder")
        super().__init__(config.decoder_dim, config.decoder_depth, config.decoder_heads, config, plan)
        self.embed = nn.Linear(config.code_dim, config.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, config.decoder_dim))
        self.num_patches = config.side**2
        self.reset_parameters()

    def forward(self, codes: Float[Tensor, "b n k"]) -> Float[Tensor, "b p d"]:
        """Return the tokens of the patches, normalized."""
        masks = self.mask_token.expand(len(codes), self.num_patches, -1)
        x = self.transform(masks, self.embed(codes.to(self.mask_token.dtype)))
        return self.norm_out(x[:, 1 : self.num_patches + 1])


class ProxyHead(nn.Module):
    """Tokens of patches to logits of proxy codes: linear, tanh, linear."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, vocab_size)
        init_truncated_normal(self)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p v"]:
        return self.fc2(self.fc1(x).tanh())


class PixelHead(nn.Module):
    """Tokens of patches to an image: a linear layer per patch, whose channels go row, column, color, and a 3x3 convolution."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.side, self.patch_size, self.channels = config.side, config.patch_size, config.in_channels
        self.fc = nn.Linear(config.decoder_dim, config.patch_size**2 * config.in_channels)
        self.conv_out = nn.Conv2d(config.in_channels, config.in_channels, 3, padding=1)
        init_truncated_normal(self)

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b c h w"]:
        cells = self.fc(x).unflatten(1, (self.side, self.side)).unflatten(-1, (self.patch_size, self.patch_size, -1))
        # (b, row, column, row in the patch, column in the patch, color)
        image = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return self.conv_out(image)
