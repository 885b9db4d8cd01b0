"""The options of TiTok, each written once, and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hiergen.checked import Count, NotNegative, Positive
from hiergen.tokenizers.maskgit_vqgan.config import PixelOptions

#: How the encoder's tokens are read by the projection to codes.
Projection = Literal["reinterpreted", "per_token"]
#: What the decoder's transformer is turned into.
Output = Literal["proxy", "proxy_decoded", "pixels"]


@dataclasses.dataclass(frozen=True)
class TiTokConfig(PixelOptions):
    """The keyword arguments of `hiergen.tokenizers.titok.model.TiTok`. The defaults are the published TiTok-L-32.

    The options of convolutions are those of the pixel decoder behind proxy codes; `output="pixels"` does not read them.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    # The transformers
    patch_size: Count = 16
    """Side of a patch in pixels, in the encoder and the decoder."""
    encoder_dim: Count = 1024
    """Channels of the encoder's tokens."""
    encoder_depth: Count = 24
    """Blocks of the encoder."""
    encoder_heads: Count = 16
    """Attention heads of the encoder."""
    decoder_dim: Count = 1024
    """Channels of the decoder's tokens."""
    decoder_depth: Count = 24
    """Blocks of the decoder."""
    decoder_heads: Count = 16
    """Attention heads of the decoder."""
    mlp_ratio: Positive = 4.0
    """Hidden channels of the MLPs over the width."""

    # The tokens
    num_latent_tokens: Count = 32
    """Tokens per image."""
    code_dim: Count = 12
    """Channels of a code."""
    vocab_size: Count | None = 4096
    """Number of codes in the codebook; None makes the tokens continuous, with a Gaussian posterior."""
    normalize_codes: bool = True
    """Search the codebook on the unit sphere, as the models in two stages do; False searches it as it is."""
    projection: Projection = "reinterpreted"
    """"reinterpreted" (the published models in two stages) reads the encoder's output as if channels came first, so every code mixes
    all tokens; with "per_token" a code is a projection of its own token."""
    commitment_weight: NotNegative = 0.25
    """Weight of the commitment loss; see `hiergen.bottlenecks.vector.VectorQuantizer`."""
    kl_weight: NotNegative = 1e-6
    """Weight of the divergence from the standard normal, summed over the entries of a sample; continuous tokens only."""

    # The image
    output: Output = "proxy_decoded"
    """How an image is made. "pixels": the decoder gives patches. "proxy" (stage 1): the decoder gives logits of proxy codes, and the
    frozen pixel decoder shows the likeliest. "proxy_decoded" (stage 2): the pixel decoder is trained and reads their expected code."""
    proxy_vocab_size: Count = 1024
    """Number of proxy codes."""
    freeze_encoder: bool = False
    """Whether training leaves everything in front of the decoder as it is (stage 2)."""

    # The stacks
    plan: dict[str, Any] | None = None
    """Steps of "encoder" and "decoder" (`hiergen.nn.depth.plan`); a part that is left out runs each block once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size is {self.image_size}, expected a multiple of patch_size, {self.patch_size}")
        if self.output != "pixels" and self.convnet.stride != self.patch_size:
            raise ValueError(
                f"patch_size is {self.patch_size}, expected the stride of the pixel decoder that reads proxy codes, "
                f"{self.convnet.stride}"
            )
        for side in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{side}_dim"), getattr(self, f"{side}_heads")
            if dim % heads:
                raise ValueError(f"{side}_heads is {heads}, expected a divisor of {side}_dim, {dim}")

    @property
    def side(self) -> int:
        """Patches along a side of the image."""
        return self.image_size // self.patch_size
