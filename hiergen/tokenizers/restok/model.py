"""ResTok: an image as a sequence of discrete tokens in levels, coarse to fine, of which any longer prefix decodes.

Letters: `b` batch, `c h w` image, `n` latent tokens, `d` channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor

from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.nn.blocks.convnet import ConvDecoder, ConvEncoder, Shortcut
from hiergen.nn.constants import Constants
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.nested_dropout import draw_prefix_lengths, prefix_mask
from hiergen.nn.precision import without_autocast
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid
from hiergen.tokenizers.restok.config import Merge, Projection, ResTokConfig
from hiergen.tokenizers.restok.decoder import LevelLinear, ResTokDecoder
from hiergen.tokenizers.restok.encoder import ResTokEncoder

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ResTok(Tokenizer):
    """A 1-D tokenizer with a pyramid of image tokens and a pyramid of latent tokens, discrete, for square images.

    The defaults are the published model (ResTok-L-128, 256x256). `projection="per_token"`, `merge="average"` and
    `cnn_shortcut="input"` are the corrected variants: codes of level i then depend on levels up to i only, coarse image tokens are
    means of 2x2 cells as the paper says, and channel-changing blocks keep their input.

    Args:
        image_size: Height and width in pixels, a multiple of the stride 2^(len(cnn_multipliers) - 1).
        in_channels: Channels of the image. Three are normalized with ImageNet's statistics, others enter as they are.
        cnn_encoder: False replaces the convolutional encoder by one patch convolution.
        cnn_channels: Channels of the convolutional parts at full resolution.
        cnn_multipliers: Their multiples, fine to coarse; see `hiergen.nn.blocks.convnet.ConvNetConfig`.
        cnn_blocks: Residual blocks of each resolution.
        cnn_mid_blocks: Further blocks at the coarsest resolution.
        cnn_groups: Groups of every GroupNorm.
        cnn_shortcut: "branch" (published) or "input" (an ordinary residual block).
        z_channels: Channels between convolutional and transformer parts.
        encoder_dim: Width of the encoder; also `encoder_depth` blocks of `encoder_heads` heads. Likewise `decoder_*`.
        mlp_ratio: Hidden channels of the MLPs over the width.
        rotary_theta: Base of the rotary frequencies.
        num_latent_tokens: Tokens of an image, a power of two; levels have 1, 1, 2, 4, ... half of them.
        min_tokens: Shortest prefix that is trained and decoded.
        code_dim: Channels of a code.
        vocab_size: Rows of the codebook.
        num_image_levels: Levels of image tokens in the encoder, 1 for no merging.
        merge: How a coarser image level is made: "even" (published: every other token of the sequence, so only the width halves) or
            "average" (means; both sides halve while they can).
        residual_image_tokens: Subtract the coarser level from the finer one at a merge.
        residual_latent_tokens: Start a latent level from what coarser ones leave over.
        latent_hierarchy: Start latent levels from a pyramid of poolings; False pools the flattened map once.
        projection: "reinterpreted" (published: the encoder's output is read as if channels came first, so every code mixes all
            tokens) or "per_token".
        multi_projection: One projection a level into and out of the bottleneck; False shares one.
        learnable_image_tokens: The decoder starts from a mask token; False starts from the sum of upsampled latent levels.
        decoder_features: Training only: a second decoder pass whose tokens `forward` returns for alignment with a teacher.
        drop_prob: Probability that training decodes a shorter prefix.
        commitment_weight: See `VectorQuantizer`.
        entropy_weight: See `VectorQuantizer`.

    Raises:
        ValueError: If the sizes do not fit together.

    Source:
        ResTok, arXiv:2601.03955. Where paper and code disagree the code decides the defaults.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ViTBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["pixel_decoder"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        image_size: int = 256,
        in_channels: int = 3,
        cnn_encoder: bool = True,
        cnn_channels: int = 128,
        cnn_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        cnn_blocks: int = 2,
        cnn_mid_blocks: int = 2,
        cnn_groups: int = 32,
        cnn_shortcut: Shortcut = "branch",
        z_channels: int = 256,
        encoder_dim: int = 1024,
        encoder_depth: int = 24,
        encoder_heads: int = 16,
        decoder_dim: int = 1024,
        decoder_depth: int = 24,
        decoder_heads: int = 16,
        mlp_ratio: float = 4.0,
        rotary_theta: float = 10000.0,
        num_latent_tokens: int = 128,
        min_tokens: int = 4,
        code_dim: int = 8,
        vocab_size: int = 8192,
        num_image_levels: int = 4,
        merge: Merge = "even",
        residual_image_tokens: bool = True,
        residual_latent_tokens: bool = True,
        latent_hierarchy: bool = True,
        projection: Projection = "reinterpreted",
        multi_projection: bool = True,
        learnable_image_tokens: bool = True,
        decoder_features: bool = False,
        drop_prob: float = 0.2,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        values: dict[str, Any] = {name: value for name, value in self.config.items() if not name.startswith("_")}
        # JSON has no tuples.
        values["cnn_multipliers"] = tuple(cnn_multipliers)
        self._build(ResTokConfig(**values))

    def _build(self, layout: ResTokConfig) -> None:
        self.layout = layout
        self._specs = tuple(
            LevelSpec(num_tokens=size, dim=layout.code_dim, vocab_size=layout.vocab_size) for size in layout.level_sizes
        )
        self.pixel_encoder = ConvEncoder(layout.convnet) if layout.cnn_encoder else None
        self.encoder = ResTokEncoder(layout)
        self.to_code = LevelLinear(
            layout.level_sizes, layout.encoder_dim, layout.code_dim, shared=not layout.multi_projection
        )
        self.quantizer = VectorQuantizer(
            layout.vocab_size,
            layout.code_dim,
            commitment_weight=layout.commitment_weight,
            entropy_weight=layout.entropy_weight,
        )
        self.decoder = ResTokDecoder(layout)
        self.pixel_decoder = ConvDecoder(layout.convnet)
        for part in (self.pixel_encoder, self.pixel_decoder):
            if part is not None:
                init_truncated_normal(part)
        mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if layout.in_channels == 3 else ((0.5,), (0.5,))
        self.constants = Constants(
            mean=torch.tensor(mean, device="cpu")[:, None, None], std=torch.tensor(std, device="cpu")[:, None, None]
        )

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """All levels; their tokens have no order in space, so no grid."""
        return self._specs

    @property
    def decodable_levels(self) -> tuple[int, ...]:
        """Numbers of levels whose tokens make an allowed prefix."""
        return tuple(
            count
            for count in range(1, len(self.layout.level_sizes) + 1)
            if sum(self.layout.level_sizes[:count]) in self.layout.allowed_prefixes
        )

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1], all levels. Nothing is random; `rng` is not read.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        latents, _ = self.encode_latents(data)
        return self._pyramid(self.quantizer(latents).ids)

    def encode_latents(
        self, data: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b n code"], Float[Tensor, "b m d"]]:
        """Return the latents before the bottleneck and the coarsest image tokens, with gradients."""
        check_images(
            data, height=self.layout.image_size, width=self.layout.image_size, channels=self.layout.in_channels
        )
        constants = self.constants.on(data.device)
        x = ((data + 1) / 2 - constants["mean"]) / constants["std"]
        if self.pixel_encoder is not None:
            x = self.pixel_encoder(x.to(self.pixel_encoder.conv_in.weight.dtype))
        tokens, image_tokens = self.encoder(x)
        if self.layout.projection == "reinterpreted":
            # Deliberately no transpose: published weights read the (n, d) numbers of a sample as (d, n).
            batch, count, channels = tokens.shape
            tokens = tokens.reshape(batch, channels, count).transpose(1, 2)
        return self.to_code(tokens), image_tokens

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped, of all levels or of an allowed prefix.

        Raises:
            ValueError: If the pyramid is another tokenizer's, or shorter than `min_tokens`.
        """
        check_pyramid(pyramid, self.specs)
        if pyramid.num_tokens not in self.layout.allowed_prefixes:
            raise ValueError(
                f"the pyramid holds {pyramid.num_tokens} tokens, expected one of {self.layout.allowed_prefixes}: "
                f"shorter prefixes were not trained (min_tokens={self.layout.min_tokens})"
            )
        codes = self.quantizer.lookup(pyramid.concat())
        missing = self.layout.num_latent_tokens - codes.shape[1]
        if not missing:
            return self._to_images(self.decoder(codes)[0])
        lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        return self._to_images(self.decoder(codes, prefix_mask(lengths, codes.shape[1]))[0])

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and losses; in train mode with nested dropout drawn from `rng`.

        The features are "encoder", the coarsest image tokens `(b, m, d)`, and in train mode with `decoder_features` "decoder", one
        token a cell of the map, row-major `(b, cells, d)`; both unnormalized.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        layout = self.layout
        latents, image_tokens = self.encode_latents(data)
        codes, ids, losses = self.quantizer(latents)
        present = None
        if self.training and layout.drop_prob > 0:
            lengths = draw_prefix_lengths(
                len(data), layout.allowed_prefixes, layout.drop_prob, rng=rng, device=data.device
            )
            present = prefix_mask(lengths, layout.num_latent_tokens)
        wants_features = self.training and layout.decoder_features
        decoded, decoder_tokens = self.decoder(codes, present, with_features=wants_features)
        features = {"encoder": image_tokens}
        if decoder_tokens is not None:
            features["decoder"] = decoder_tokens
        return TokenizerOutput(self._to_images(decoded), self._pyramid(ids), losses, features)

    def _pyramid(self, ids: Tensor) -> TokenPyramid:
        return TokenPyramid.split(ids, self.specs)

    def _to_images(self, decoded: Tensor) -> Tensor:
        # The published model decodes to [0, 1] in float32, whatever autocast says.
        with without_autocast(decoded.device):
            return 2 * self.pixel_decoder(decoded.to(self.pixel_decoder.conv_in.weight.dtype)) - 1
