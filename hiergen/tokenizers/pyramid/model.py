"""A tokenizer made of any hierarchical encoder: each stage's features become a level, which codes what the coarser levels leave over.

    f_1 ... f_K = encoder(image)                       feature maps, coarse to fine, of timm or of our mixers
    p_k         = lateral_k(LN(f_k))                   1 x 1, to the channels of a code
    tokens      = residual quantization of p_1 ... p_K (`hiergen.tokenizers.pyramid.levels`)
    image       = decoder(s_k on the finest grid)      of any number of levels k

Codes of a level depend on no code and no lateral of a finer level. Features do depend on finer stages where the encoder computes coarse maps
from fine ones, as most do.

Letters: `b` batch, `c h w` image, `n` tokens, `d` channels of a code.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.multiscale import MultiScaleQuantizer
from hiergen.bottlenecks.vector import VectorQuantizer
from hiergen.nn.blocks.convnet import ConvDecoder
from hiergen.nn.nested_dropout import draw_prefix_lengths
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, check_pyramid, configured
from hiergen.tokenizers.pyramid.config import PyramidConfig
from hiergen.tokenizers.pyramid.encoder import PyramidEncoder
from hiergen.tokenizers.pyramid.levels import ResidualLevels


class PyramidTokenizer(Tokenizer):
    """A pyramid of features as levels of tokens, for images of one size of any shape.

    Options are the fields of `PyramidConfig`, as keyword arguments.

    Raises:
        ValueError: If an option is unknown, the encoder is no pyramid, or the sizes do not fit together.
        ImportError: If the encoder is one of timm, which is not installed.

    Source:
        Our own design. VAR (arXiv:2404.02905) quantizes one finest map at all scales; here each level has the target of its own stage.
    """

    _supports_gradient_checkpointing = True
    _keep_in_fp32_modules = ["levels"]  # type: ignore[assignment]  # noqa: RUF012

    @configured(PyramidConfig)
    def __init__(self, layout: PyramidConfig) -> None:
        super().__init__()
        self.layout = layout
        finest = layout.decoder.stride
        # Continued to whole cells of the finest level, which the decoder can then rebuild.
        height, width = layout.size
        self._padded = (height + -height % finest, width + -width % finest)
        self.encoder = PyramidEncoder.create(
            layout.backbone,
            image_size=self._padded,
            in_channels=layout.in_channels,
            weights=layout.backbone_weights,
            options=layout.backbone_options,
        )
        # What was read from elsewhere is the model's own from here on.
        self.register_to_config(backbone_weights="random")
        if self.encoder.strides[-1] != finest:
            raise ValueError(
                f"the decoder has the stride {finest}, expected {self.encoder.strides[-1]}, the finest of the encoder: change "
                "decoder_multipliers or decoder_stem"
            )
        grids = self.encoder.grids(*self._padded)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, layout.code_dim))
            for channels in self.encoder.channels
        )
        self.levels = ResidualLevels(layout, grids)
        self._specs = tuple(LevelSpec(h * w, (h, w), layout.code_dim, layout.vocab_size) for h, w in grids)
        self.decoder = ConvDecoder(layout.decoder)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def quantizer(self) -> VectorQuantizer:
        """The quantizer of all levels.

        Raises:
            ValueError: If there is no codebook.
        """
        if not isinstance(self.levels.quantizer, VectorQuantizer):
            raise ValueError(
                f"quantizer is {self.layout.quantizer!r} and vocab_size is {self.layout.vocab_size}: the tokenizer has no codebook"
            )
        return self.levels.quantizer

    @property
    def next_scale_quantizer(self) -> MultiScaleQuantizer:
        """A quantizer of the same grids and codes, for a generator of the next scale, which computes its inputs with it.

        It adds up codes without the levels' factors and filters: what such a generator reads need only be a function of earlier ids.

        Raises:
            ValueError: If the tokens are continuous.
        """
        vocabulary = self.layout.vocab_size
        if self.levels.quantizer is None or vocabulary is None:
            raise ValueError(
                "vocab_size is None, expected a number of codes: continuous levels have no ids of a next scale"
            )
        made = MultiScaleQuantizer(vocabulary, self.layout.code_dim, self.levels.grids, filter_ratio=0.0)
        with torch.no_grad():
            ids = torch.arange(vocabulary, device=self.device)[None]
            made.to(self.device).codebook.copy_(self.levels.quantizer.lookup(ids)[0])
        return made

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.decoder.conv_out.weight

    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of images in [-1, 1], all levels.

        Args:
            data: Images.
            rng: Draws continuous tokens; None takes their means. Ids are not random.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        with torch.no_grad():
            found = self.levels(self._targets(data), samples=rng is not None, rng=rng)
            return TokenPyramid(found.tokens, self.specs)

    def encode_latents(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return what the codes of all levels are chosen for, with gradients.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        return torch.cat(self.levels(self._targets(data)).residuals, dim=1)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return images, about [-1, 1] but not clamped.

        Args:
            pyramid: All levels or a prefix of them: ids or continuous tokens, or the mixtures of codes `(b, n, d)` that a generator of the
                next scale makes in place of ids.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        mixed = tuple(dataclasses.replace(spec, vocab_size=None) for spec in self.specs)
        if pyramid.specs != mixed[: len(pyramid)]:
            check_pyramid(pyramid, self.specs)
        return self._decode(self.levels.combine(pyramid.levels))

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Return reconstruction, tokens and the losses of the levels. In train mode `rng` draws prefixes and continuous tokens.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        found = self.levels(self._targets(data), samples=self.training, rng=rng)
        count = len(self.specs)
        whole = found.sums[-1]
        if self.training and self.layout.drop_prob > 0:
            lengths = draw_prefix_lengths(
                len(data), range(1, count + 1), self.layout.drop_prob, rng=rng, device=data.device
            )
            for level in range(1, count):
                is_cut = (lengths == level)[:, None, None, None]
                whole = torch.where(is_cut, self.levels.finish(found.sums[level - 1], level), whole)
        return TokenizerOutput(self._decode(whole), TokenPyramid(found.tokens, self.specs), found.losses)

    def _targets(self, data: Tensor) -> list[Tensor]:
        """Return what every stage wants, `(b, d, h, w)` each."""
        height, width = self.layout.size
        check_images(data, height=height, width=width, channels=self.layout.in_channels)
        padded = F.pad(data, (0, self._padded[1] - width, 0, self._padded[0] - height), mode="replicate")
        maps = self.encoder(padded)
        return [
            lateral(part.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for lateral, part in zip(self.laterals, maps, strict=True)
        ]

    def _decode(self, codes: Tensor) -> Tensor:
        height, width = self.layout.size
        return self.decoder(codes.to(self.decoder.conv_in.weight.dtype))[:, :, :height, :width]
