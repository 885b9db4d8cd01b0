"""What ResTok's official program does on every call, on our weights: the baseline of `hiergen bench restok`.

Mask and rotary table are built anew for every layer (the mask on the CPU, as an additive float mask), and the search returns the
distances to all codes and the entropy term with its weight of zero.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from hiergen.nn.blocks.vit import ViTAttention, ViTBlock
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import apply_rotary, grid_positions, rotary_table
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.restok.encoder import expand_levels, merge_coarsest
from hiergen.tokenizers.restok.model import ResTok


class PlainResTok:
    """Encode and decode with the weights of a `ResTok`, layer by layer as its official program does."""

    def __init__(self, model: ResTok) -> None:
        self._model = model
        self._layout = model.layout

    @torch.no_grad()
    def encode(self, images: Tensor) -> TokenPyramid:
        """Return the ids of images in [-1, 1]."""
        model, layout, encoder = self._model, self._layout, self._model.encoder
        constants = model.constants.on(images.device)
        x = ((images + 1) / 2 - constants["mean"]) / constants["std"]
        if model.pixel_encoder is not None:
            x = model.pixel_encoder(x)
        features = encoder.patch_embed(x)
        latents = encoder.initial_latents(features) + expand_levels(encoder.latent_level_embedding, layout.level_sizes)
        image = rearrange(features, "b d h w -> b (h w) d") + encoder.level_embedding[0]
        tokens, stage = encoder.norm_in(torch.cat((image, latents), dim=1)), 0
        for index, block in enumerate(encoder.blocks):
            merges = index in encoder.merge_blocks
            tokens = self._encoder_block(block, tokens, stage, merges)
            if merges:
                stage += 1
                count = math.prod(layout.image_grids[stage])
                tokens = torch.cat((tokens[:, :count] + encoder.level_embedding[stage], tokens[:, count:]), dim=1)
        latents = encoder.norm_out(tokens[:, -layout.num_latent_tokens :])
        if layout.projection == "reinterpreted":
            batch, count, channels = latents.shape
            latents = latents.reshape(batch, channels, count).transpose(1, 2)
        return TokenPyramid.split(self._search(model.to_code(latents)), model.specs)

    @torch.no_grad()
    def decode(self, pyramid: TokenPyramid) -> Tensor:
        """Return images of about [-1, 1] of a full pyramid."""
        model, layout, decoder = self._model, self._layout, self._model.decoder
        latents = decoder.embed(model.quantizer.lookup(pyramid.concat()))
        cells = decoder._image_tokens(latents)
        latents = latents + expand_levels(decoder.latent_level_embedding, layout.level_sizes)
        tokens = decoder.norm_in(torch.cat((latents, cells), dim=1))
        for block in decoder.blocks:
            line = torch.arange(layout.num_latent_tokens, dtype=torch.float64)[:, None].expand(-1, 2)
            grid = grid_positions(layout.grid_size, layout.grid_size) + layout.num_latent_tokens
            rotary = self._rotary(torch.cat((line, grid)), layout.decoder_dim // layout.decoder_heads, tokens.device)
            tokens = _block(block, tokens, rotary, None)
        image = decoder.norm_out(tokens[:, layout.num_latent_tokens :])
        image = decoder.out(rearrange(image, "b (h w) d -> b d h w", h=layout.grid_size))
        return model.pixel_decoder(image) * 2 - 1

    def _encoder_block(self, block: nn.Module, tokens: Tensor, stage: int, merges: bool) -> Tensor:
        layout = self._layout
        grids = layout.image_grids[stage::-1]
        positions, offset = [], 0
        for grid in grids:
            positions.append(grid_positions(*grid) + offset)
            offset += math.prod(grid)
        line = torch.arange(layout.num_latent_tokens, dtype=torch.float64) + offset
        positions.append(line[:, None].expand(-1, 2))
        rotary = self._rotary(torch.cat(positions), layout.encoder_dim // layout.encoder_heads, tokens.device)
        groups = BlockCausalMask((*(math.prod(grid) for grid in grids), *layout.level_sizes)).groups()
        allowed = groups[:, None] >= groups[None, :]
        mask = torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf).to(tokens.device, tokens.dtype)
        merge = functools.partial(
            merge_coarsest, grid=layout.image_grids[stage], rule=layout.merge, residual=layout.residual_image_tokens
        )
        return _block(block, tokens, rotary, mask, merge if merges else None)

    def _rotary(self, positions: Tensor, head_dim: int, device: torch.device) -> Tensor:
        return rotary_table(positions.to(device), head_dim, theta=self._layout.rotary_theta)

    def _search(self, latents: Tensor) -> Tensor:
        quantizer = self._model.quantizer
        unit, codebook = F.normalize(latents.float(), dim=-1), F.normalize(quantizer.codebook.float(), dim=-1)
        flat = unit.flatten(0, 1)
        distances = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * flat @ codebook.T
        logits = -distances / 0.01
        log_p = F.log_softmax(logits + 1e-5, dim=-1)
        p = log_p.exp()
        mean_p = p.mean(0)
        entropy = -(p * log_p).sum(-1).mean() + (mean_p * (mean_p + 1e-5).log()).sum()
        # The official program adds it with weight zero.
        return distances.argmin(1).unflatten(0, latents.shape[:2]) + (0 * entropy).long()


def _block(block: nn.Module, tokens: Tensor, rotary: Tensor, mask: Tensor | None, merge: object = None) -> Tensor:
    assert isinstance(block, ViTBlock)
    tokens = tokens + block.scale1 * _attention(block.attention, block.norm1(tokens), rotary, mask)
    if callable(merge):
        tokens = merge(tokens)
    return tokens + block.scale2 * block.mlp(block.norm2(tokens))


def _attention(layer: ViTAttention, tokens: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
    bias = torch.cat((layer.query_bias, torch.zeros_like(layer.query_bias), layer.value_bias))
    qkv = F.linear(tokens, layer.qkv.weight, bias)
    query, key, value = rearrange(qkv, "b n (three h k) -> three b h n k", three=3, h=layer.num_heads)
    query, key = (apply_rotary(x, rotary) for x in (layer.query_norm(query), layer.key_norm(key)))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return layer.out(rearrange(out, "b h n k -> b n (h k)"))
