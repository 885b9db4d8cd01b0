"""ResTok: an image as discrete tokens in levels, coarse to fine; every prefix of at least `min_tokens` tokens can be decoded.

Letters: `b` batch, `c h w` image, `z` channels of the map between convolutions and transformers, `n` latent tokens, `m` image tokens
of the coarsest level, `d` channels of a token, `k` channels of a code.

    map          = pixel_encoder(standardized image)                      (b z h/s w/s)    convolutions of stride s
    latents, _   = encoder(map)                                           (b n d)          levels of 1, 1, 2, 4, ..., n/2 tokens
    ids          = argmax over i of cos(to_code(latents), codebook_i)     (b n)            one projection per level
    map          = decoder(codebook[ids], mask token beyond the prefix)   (b z h/s w/s)
    image        = 2 * pixel_decoder(map) - 1                             (b c h w)

The encoder's sequence is `[image levels, coarsest first | latent levels, coarsest first]`: a token sees its own level and all before
it, and some blocks put a still coarser image level in front. In training, prefixes of random length are decoded.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.nn.blocks.convnet import ConvDecoder, ConvEncoder
from hiergen.nn.constants import IMAGENET_STATISTICS, channel_statistics
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.nested_dropout import draw_prefix_lengths, prefix_mask
from hiergen.nn.running.precision import without_autocast
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Pictures, Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.restok.config import ResTokConfig
from hiergen.tokenizers.restok.decoder import LevelLinear, ResTokDecoder
from hiergen.tokenizers.restok.encoder import ResTokEncoder


class ResTok(Tokenizer):
    """A 1-D tokenizer with a pyramid of image tokens and a pyramid of latent tokens, discrete, for square images.

    Options are the fields of `ResTokConfig`, as keyword arguments. The defaults are the published model (ResTok-L-128, 256x256).
    `projection="per_token"`, `merge="average"` and `cnn_shortcut="input"` are the corrected variants: codes of level i then depend
    on levels up to i only, coarse image tokens are means of 2x2 cells as the paper says, and channel-changing blocks keep their
    input.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit together.

    Source:
        ResTok, arXiv:2601.03955. Where paper and code disagree the code decides the defaults.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ViTBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["pixel_decoder"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(ResTokConfig)
    def __init__(self, layout: ResTokConfig) -> None:
        super().__init__()
        self.layout = layout
        sizes = layout.level_sizes
        self._specs = tuple(LevelSpec(size, dim=layout.code_dim, vocab_size=layout.vocab_size) for size in sizes)
        self.pixel_encoder = ConvEncoder(layout.convnet) if layout.cnn_encoder else None
        self.encoder = ResTokEncoder(layout)
        self.to_code = LevelLinear(sizes, layout.encoder_dim, layout.code_dim, shared=not layout.multi_projection)
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
        self.constants = channel_statistics(*(IMAGENET_STATISTICS if layout.in_channels == 3 else ((0.5,), (0.5,))))

    _decoding_modules = ("decoder", "pixel_decoder")

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """All levels. They have no grid, because their tokens have no order in space."""
        return self._specs

    @property
    def decodable_levels(self) -> tuple[int, ...]:
        """How many levels make an allowed prefix: every such number, ascending."""
        prefixes = enumerate(self.layout.prefixes, start=1)
        return tuple(count for count, tokens in prefixes if tokens in self.layout.allowed_prefixes)

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"] | Pictures, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the ids of images in [-1, 1], all levels. Nothing is random; `rng` is not read.

        Pictures that are no tensor go through `image_processor`.

        Raises:
            ValueError: If the images have another size or number of channels than the model, or values leave [-1, 1].
            TypeError: If they are not floating point.
        """
        latents, _ = self.encode_latents(self._to_images(data))
        return self._pyramid(self.quantizer(latents).ids)

    def encode_latents(self, data: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b m d"]]:
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
        """Return images, about [-1, 1] but not clamped, from all levels or from an allowed prefix of them.

        Raises:
            ValueError: If the pyramid comes from another tokenizer, or is shorter than `min_tokens`.
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
            return self._pixels(self.decoder(codes)[0])
        lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        return self._pixels(self.decoder(codes, prefix_mask(lengths, codes.shape[1]))[0])

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, ids and losses; in train mode with nested dropout drawn from `rng`.

        The features are "encoder", the coarsest image tokens `(b, m, d)`, and in train mode with `decoder_features` "decoder", one
        token per cell of the map, row-major `(b, cells, d)`; both unnormalized.

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
        return TokenizerOutput(self._pixels(decoded), self._pyramid(ids), losses, features)

    def _pyramid(self, ids: Tensor) -> TokenPyramid:
        return TokenPyramid.split(ids, self.specs)

    def _pixels(self, decoded: Tensor) -> Tensor:
        # The published model decodes to [0, 1] in float32, whatever autocast says.
        with without_autocast(decoded.device):
            return 2 * self.pixel_decoder(decoded.to(self.pixel_decoder.conv_in.weight.dtype)) - 1
