"""What every tokenizer is: data -> levels of tokens -> data."""

from __future__ import annotations

import abc
import dataclasses

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from hiergen.pyramid import LevelSpec, TokenPyramid


@dataclasses.dataclass
class TokenizerOutput:
    """What a training step needs of a tokenizer's forward pass.

    Attributes:
        reconstruction: Data decoded from the tokens, in the tokenizer's public range (not clamped).
        pyramid: The tokens.
        losses: Weighted terms of the bottleneck by name, scalars; the task adds the reconstruction terms.
        features: Intermediate results that some losses read (alignment with a teacher), by name.
    """

    reconstruction: Tensor
    pyramid: TokenPyramid
    losses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    features: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Tokenizer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both bases define config_name
    """A diffusers model that maps data to levels of tokens and back.

    Subclasses register a keyword-only config of JSON values in `__init__` and implement `specs`, `encode`, `decode` and
    `forward`. `specs` lists what a generator must produce, coarse to fine.
    """

    @property
    @abc.abstractmethod
    def specs(self) -> tuple[LevelSpec, ...]:
        """All levels, coarse to fine."""

    @property
    def decodable_levels(self) -> tuple[int, ...]:
        """Numbers of levels from which `decode` works, ascending; the last is all of them."""
        return tuple(range(1, len(self.specs) + 1))

    @abc.abstractmethod
    def encode(self, data: Tensor, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of a batch. `rng` is read only where the bottleneck samples; None takes its mode."""

    @abc.abstractmethod
    def decode(self, pyramid: TokenPyramid) -> Tensor:
        """Return the data of a pyramid that holds all levels or a prefix of them (not clamped)."""

    @abc.abstractmethod
    def forward(self, data: Tensor, *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode with gradients, with the random parts of training where the module is in train mode."""


def check_images(images: Tensor, *, height: int, width: int, channels: int = 3) -> None:
    """Check a batch of images `(b, c, h, w)` in [-1, 1].

    Raises:
        ValueError: If the rank, the channels or the size differ from what the model was built for.
        TypeError: If the values are not floating point (uint8 images must be scaled first).
    """
    if images.ndim != 4 or images.shape[1] != channels or images.shape[2:] != (height, width):
        raise ValueError(f"images have shape {tuple(images.shape)}, expected (b, {channels}, {height}, {width})")
    if not images.is_floating_point():
        raise TypeError(
            f"images have dtype {images.dtype}, expected floating point in [-1, 1]: scale with x / 127.5 - 1"
        )


def check_pyramid(pyramid: TokenPyramid, specs: tuple[LevelSpec, ...]) -> None:
    """Check that a pyramid holds all levels of `specs` or a prefix of them.

    Raises:
        ValueError: If it was made by another tokenizer.
    """
    if pyramid.specs != specs[: len(pyramid)]:
        raise ValueError(
            f"the pyramid's levels are {pyramid.specs}, this model's are {specs}: they come from another tokenizer"
        )
