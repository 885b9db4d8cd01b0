"""The options of FlexTok, each written once, and their checks."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from hiergen.checked import Checked, Count, NotNegative, Positive, Share
from hiergen.nn.nested_dropout import LengthDistribution
from hiergen.nn.straight_path import TimeDistribution

#: How the velocity with the tokens is moved away from the one without: see `FlowDecoding.guidance`.
Guidance = Literal["projected", "plain"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowDecoding(Checked):
    """How `FlexTok.decode` integrates from noise to an image. The defaults are those that its authors recommend."""

    num_steps: Count = 20
    """Euler steps from noise to the image."""
    guidance_scale: NotNegative = 7.5
    """Weight of the tokens in every step; 1 turns guidance off, and with it half of the work."""
    guidance: Guidance = "projected"
    """"projected" is adaptive projected guidance (`hiergen.tokenizers.flextok.guidance`), "plain" classifier-free guidance, which wants a
    smaller scale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlexTokConfig(FlowDecoding):
    """The keyword arguments of `hiergen.tokenizers.flextok.model.FlexTok`. The defaults are FlexTok d18-d18, but for the autoencoder.

    Raises:
        ValueError: If the sizes do not fit together.
    """

    # The image and the map that the transformers work on
    image_size: Count = 256
    """Height and width in pixels."""
    in_channels: Count = 3
    """Channels of the image."""
    autoencoder: dict[str, Any] | None = None
    """Entries of `diffusers.AutoencoderKL`'s config: the frozen autoencoder whose latents are the map; None works on pixels."""
    scaling_factor: Positive = 1.0
    """The map is multiplied by it: it should bring latents to a deviation of about 1."""
    sample_posterior: bool = False
    """Whether latents are drawn, in training and where `encode` is given a generator; otherwise they are the posterior's mean."""
    patch_size: Count = 2
    """Side of the square of the map that makes one token."""

    # The transformers
    encoder_dim: Count = 1152
    """Channels of the encoder's tokens."""
    encoder_depth: Count = 18
    """Blocks of the encoder."""
    encoder_heads: Count = 18
    """Attention heads of the encoder."""
    decoder_dim: Count = 1152
    """Channels of the decoder's tokens."""
    decoder_depth: Count = 18
    """Blocks of the decoder."""
    decoder_heads: Count = 18
    """Attention heads of the decoder."""
    max_time: Positive = 1.0
    """Time that the decoder's time features are scaled for: their frequencies begin at 1000 over it. Published weights need their own."""

    # The tokens
    num_registers: Count = 256
    """Tokens per image, a power of two."""
    code_levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Values of each channel of a code; their product is the vocabulary."""

    # Training
    length_distribution: LengthDistribution = "uniform_powers"
    """How many tokens the decoder sees in training; see `hiergen.nn.nested_dropout.draw_nested_lengths`."""
    null_prob: Share = 0.1
    """Probability that the decoder sees no token of a sample in training, which guidance needs."""
    time_distribution: TimeDistribution = "logit_normal"
    """Distribution of the training times."""
    spread_weight: NotNegative = 0.0
    """Weight of a loss that keeps every channel of a latent, before it is rounded, from varying by less than 1 over the batch: the variance
    term of VICReg, arXiv:2105.04906. Small models trained from nothing use one code for all images without it. Ours; the paper has none."""

    weights_license: str | None = None
    """License of the weights, where a converter knows it; it goes with what is saved."""

    # The stacks
    plan: dict[str, Any] | None = None
    """Steps of "encoder" and "decoder" (`hiergen.nn.depth.plan`); a part that is left out runs each block once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % (self.stride * self.patch_size):
            raise ValueError(
                f"image_size is {self.image_size}, expected a multiple of patch_size times the autoencoder's stride, "
                f"{self.patch_size} x {self.stride}"
            )
        if self.num_registers & (self.num_registers - 1):
            raise ValueError(f"num_registers is {self.num_registers}, expected a power of two")
        for side in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{side}_dim"), getattr(self, f"{side}_heads")
            if dim % heads or dim % 4:
                raise ValueError(
                    f"{side}_dim is {dim} with {heads} heads, expected a multiple of 4 and of {side}_heads"
                )

    @property
    def stride(self) -> int:
        """Pixels along a side of a cell of the map."""
        return 1 if self.autoencoder is None else 2 ** (len(self.autoencoder["block_out_channels"]) - 1)

    @property
    def map_channels(self) -> int:
        """Channels of the map."""
        return self.in_channels if self.autoencoder is None else int(self.autoencoder["latent_channels"])

    @property
    def side(self) -> int:
        """Patches along a side of the map."""
        return self.image_size // self.stride // self.patch_size

    @property
    def patch_dim(self) -> int:
        """How many numbers a patch holds."""
        return self.map_channels * self.patch_size**2

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Tokens of each level: 1, 1, 2, 4, ..., half of all."""
        return (1, *(2**k for k in range(self.num_registers.bit_length() - 1)))
