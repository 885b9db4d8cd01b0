"""TiTok: an image as a short sequence of tokens without places, one level.

Letters: `b` batch, `c h w` image, `n` latent tokens, `d` channels of a token, `k` channels of a code, `p` patches, `v` proxy codes, `z`
channels of a proxy code.

    tokens = encoder([class | patches | latent tokens])                      (b n d), the last n
    ids    = nearest rows of the codebook to to_code(tokens)                 (b n), or a Gaussian posterior
    cells  = decoder([class | mask tokens | codes])                          (b p d), the mask tokens' places
    image  = pixel_decoder(sum over v of softmax(head(cells)) proxy_code_v)  (b c h w); or patches, head(cells)

The published models are trained in two stages. The first learns to predict the ids of MaskGIT-VQGAN for the same image
(`hiergen.training.tasks.proxy_codes`), the second trains the decoder and the pixel decoder on images.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.gaussian import GaussianPosterior
from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.nn.blocks.convnet import ConvDecoder
from hiergen.nn.initialization import init_truncated_normal
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ
from hiergen.tokenizers.titok.config import TiTokConfig
from hiergen.tokenizers.titok.transformers import PixelHead, ProxyHead, TiTokDecoder, TiTokEncoder


class TiTok(Tokenizer):
    """A 1-D tokenizer of square images, discrete or continuous, with one level.

    Options are the fields of `TiTokConfig`, as keyword arguments; the defaults are TiTok-L-32 as published.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit together.

    Source:
        TiTok, arXiv:2406.07550. Where paper and code disagree the code decides the defaults.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["pixel_decoder"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(TiTokConfig)
    def __init__(self, layout: TiTokConfig) -> None:
        super().__init__()
        self.layout = layout
        self._specs = (LevelSpec(layout.num_latent_tokens, dim=layout.code_dim, vocab_size=layout.vocab_size),)
        self.encoder = TiTokEncoder(layout)
        # A Gaussian needs means and log-variances.
        num_channels = layout.code_dim * (2 if layout.vocab_size is None else 1)
        self.to_code = nn.Linear(layout.encoder_dim, num_channels)
        init_truncated_normal(self.to_code)
        self.quantizer: VectorQuantizer | None = None
        if layout.vocab_size is not None:
            self.quantizer = VectorQuantizer(
                layout.vocab_size,
                layout.code_dim,
                commitment_weight=layout.commitment_weight,
                normalize=layout.normalize_codes,
            )
        self.decoder = TiTokDecoder(layout)
        if layout.output == "pixels":
            self.head: ProxyHead | PixelHead = PixelHead(layout)
        else:
            self.head = ProxyHead(layout.decoder_dim, layout.proxy_vocab_size)
            self.proxy_codebook = nn.Parameter(torch.randn(layout.proxy_vocab_size, layout.z_channels))
            self.pixel_decoder = ConvDecoder(layout.convnet)
        self._freeze()

    def _freeze(self) -> None:
        frozen: list[nn.Module | nn.Parameter] = []
        if self.layout.output == "proxy":
            frozen += [self.proxy_codebook, self.pixel_decoder]
        if self.layout.freeze_encoder:
            frozen += [self.encoder, self.to_code, *([self.quantizer] if self.quantizer else [])]
        for part in frozen:
            part.requires_grad_(False)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """The one level. It has no grid, because its tokens have no order in space."""
        return self._specs

    @torch.no_grad()
    def take_proxy(self, tokenizer: MaskGITVQ) -> None:
        """Copy the codebook and the pixel decoder of the tokenizer whose ids are the proxy codes.

        Raises:
            ValueError: If this model has no proxy codes, or they are of other sizes.
        """
        if self.layout.output == "pixels":
            raise ValueError("output is 'pixels', expected 'proxy' or 'proxy_decoded' for a model with proxy codes")
        specs, side = tokenizer.specs[0], self.layout.side
        wanted = (side, side), self.layout.z_channels, self.layout.proxy_vocab_size
        if (specs.grid, specs.dim, specs.vocab_size) != wanted:
            raise ValueError(
                f"the proxy codes are {specs}, expected a grid of {wanted[0]}, {wanted[1]} channels and {wanted[2]} codes"
            )
        self.proxy_codebook.copy_(tokenizer.quantizer.codebook)
        self.pixel_decoder.load_state_dict(tokenizer.pixel_decoder.state_dict())

    def encode_latents(self, data: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b n k"], Float[Tensor, "b n d"]]:
        """Return the latents before the bottleneck and the encoder's tokens, with gradients.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        size = self.layout.image_size
        check_images(data, height=size, width=size, channels=self.layout.in_channels)
        tokens = self.encoder((data + 1) / 2)
        read = tokens
        if self.layout.projection == "reinterpreted":
            # Deliberately no transpose: published weights read the (n, d) numbers of a sample as (d, n).
            batch, count, channels = tokens.shape
            read = tokens.reshape(batch, channels, count).transpose(1, 2)
        return self.to_code(read), tokens

    def posterior(self, data: Float[Tensor, "b c h w"]) -> GaussianPosterior:
        """Return the distribution of continuous tokens, channels first, `(b, k, n)`, which is the order of its draws.

        Raises:
            ValueError: If the tokens are discrete, or the images do not fit the model.
            TypeError: If the images are not floating point.
        """
        if self.quantizer is not None:
            raise ValueError(f"vocab_size is {self.layout.vocab_size}, expected None for a model with a posterior")
        latents, _ = self.encode_latents(data)
        mean, log_variance = latents.transpose(1, 2).chunk(2, dim=1)
        return GaussianPosterior(mean, log_variance)

    @torch.no_grad()
    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of images in [-1, 1]: ids; or continuous tokens, drawn by `rng`, or without one the mode.

        Random draws of continuous tokens: (b, k, n) normal numbers. The published program always draws, on the CPU.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        if self.quantizer is not None:
            return TokenPyramid((self.quantizer(self.encode_latents(data)[0]).ids,), self.specs)
        posterior = self.posterior(data)
        codes = posterior.mean if rng is None else posterior.sample(rng)
        return TokenPyramid((codes.transpose(1, 2).contiguous(),), self.specs)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        return self._to_images(self._run_head(self._lookup(pyramid)))

    def proxy_logits(self, pyramid: TokenPyramid) -> Float[Tensor, "b p v"]:
        """Return the logits of the proxy codes of every patch.

        Raises:
            ValueError: If the pyramid comes from another tokenizer, or the model has no proxy codes.
        """
        if self.layout.output == "pixels":
            raise ValueError("output is 'pixels', expected 'proxy' or 'proxy_decoded' for a model with proxy codes")
        return self._run_head(self._lookup(pyramid))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, tokens and losses; in train mode continuous tokens are drawn from `rng`.

        The features are "proxy_logits" `(b, p, v)` where there are proxy codes. With `output="proxy"` the reconstruction has no
        gradient. With `freeze_encoder` there are no losses.

        Raises:
            ValueError: If the images have another size or number of channels than the model.
            TypeError: If they are not floating point.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.layout.freeze_encoder):
            codes, tokens, losses = self._bottleneck(data, rng)
        out = self._run_head(codes)
        features = {} if self.layout.output == "pixels" else {"proxy_logits": out}
        return TokenizerOutput(
            self._to_images(out),
            TokenPyramid((tokens,), self.specs),
            {} if self.layout.freeze_encoder else losses,
            features,
        )

    def _bottleneck(
        self, data: Tensor, rng: torch.Generator | None
    ) -> tuple[Float[Tensor, "b n k"], Tensor, dict[str, Tensor]]:
        """Return what the decoder reads, the tokens of the pyramid, and the losses."""
        if self.quantizer is not None:
            codes, ids, losses = self.quantizer(self.encode_latents(data)[0])
            return codes, ids, losses
        posterior = self.posterior(data)
        codes = (posterior.sample(rng) if self.training else posterior.mean).transpose(1, 2).contiguous()
        return codes, codes, {"kl": self.layout.kl_weight * posterior.kl()}

    def _lookup(self, pyramid: TokenPyramid) -> Float[Tensor, "b n k"]:
        check_pyramid(pyramid, self.specs)
        tokens = pyramid.levels[0]
        return tokens if self.quantizer is None else self.quantizer.lookup(tokens)

    def _run_head(self, codes: Float[Tensor, "b n k"]) -> Tensor:
        """Return the logits of the proxy codes, or images in [0, 1]."""
        return self.head(self.decoder(codes))

    def _to_images(self, out: Tensor) -> Float[Tensor, "b c h w"]:
        if self.layout.output == "pixels":
            return 2 * out - 1
        # In float32 as published, whatever autocast says.
        with without_autocast(out.device), torch.set_grad_enabled(self._trains_pixels):
            codebook = widen(self.proxy_codebook)
            if self.layout.output == "proxy":
                cells = nn.functional.embedding(out.argmax(dim=-1), codebook)
            else:
                cells = widen(out).softmax(dim=-1) @ codebook
            cells = rearrange(cells, "b (s t) z -> b z s t", s=self.layout.side)
            return 2 * self.pixel_decoder(cells.to(self.pixel_decoder.conv_in.weight.dtype)) - 1

    @property
    def _trains_pixels(self) -> bool:
        return torch.is_grad_enabled() and self.layout.output != "proxy"
