"""What every tokenizer is: data -> levels of tokens -> data."""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Generic

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from typing_extensions import TypeVar

from hiergen.config import from_json, nearest
from hiergen.pyramid import LevelSpec, TokenPyramid

#: What `decode` returns: a tensor, or for shapes a field that can be queried at points.
Decoded = TypeVar("Decoded", default=Tensor)


#: Pictures of any kind that `hiergen.ImageProcessor` reads.
Pictures = Any


@dataclasses.dataclass
class TokenizerOutput:
    """What a training step needs from a tokenizer's forward pass.

    Attributes:
        reconstruction: Data decoded from the tokens, in the tokenizer's public range (not clamped); for shapes, logits at points.
        pyramid: The tokens.
        losses: Weighted terms of the bottleneck by name, scalars; the task adds the reconstruction terms.
        features: Intermediate results that some losses read (alignment with a teacher), by name.
    """

    reconstruction: Tensor
    pyramid: TokenPyramid
    losses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    features: dict[str, Tensor] = dataclasses.field(default_factory=dict)


# So that `torch.export` and the like look into what a forward pass returns.
torch.export.register_dataclass(TokenizerOutput, serialized_type_name="hiergen.TokenizerOutput")


def configured(kind: type[Any]) -> Callable[[Callable[[Any, Any], None]], Callable[..., None]]:
    """Let a constructor that is written for one config value take the fields of the dataclass `kind` as keyword arguments.

    Options are then written once, with types, defaults and checks, and the model saves and loads them as any diffusers model
    does: flat in its `config.json`. An unknown name, or a value that does not fit its field, is a ValueError.
    """

    def decorate(build: Callable[[Any, Any], None]) -> Callable[..., None]:
        def __init__(self: Any, **options: Any) -> None:  # noqa: N807
            build(self, from_json(kind, options, where=type(self).__name__))

        missing, empty, keyword = dataclasses.MISSING, inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        for field in dataclasses.fields(kind):
            default = empty if field.default is missing else field.default
            parameters.append(inspect.Parameter(field.name, keyword, default=default, annotation=field.type))
        # diffusers reads names and defaults from the signature.
        __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return register_to_config(__init__)

    return decorate


class Tokenizer(ModelMixin, ConfigMixin, Generic[Decoded]):  # type: ignore[misc]  # both bases define config_name
    """A diffusers model that maps data to levels of tokens and back.

    Subclasses register a keyword-only config of JSON values in `__init__` (`register_to_config`, or `configured` where the options
    are a dataclass) and implement `specs`, `encode`, `decode` and `forward`. `specs` lists what a generator must produce, coarse to
    fine. `Tokenizer` alone decodes to tensors; `Tokenizer[T]` decodes to `T`.
    """

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Refuse entries of a saved config that the model does not know; diffusers would drop them with a warning.

        Raises:
            ValueError: If there is such an entry, with the nearest name.
        """
        known = cls._get_init_keys(cls)
        for name in config_dict:
            if not name.startswith("_") and name not in known:
                raise ValueError(f"the config of a {cls.__name__} has an unknown entry {name!r}{nearest(name, known)}")
        return super().extract_init_dict(config_dict, **kwargs)

    #: Names of the modules that `compile_decoding` compiles.
    _decoding_modules: ClassVar[tuple[str, ...]] = ("decoder",)

    @property
    @abc.abstractmethod
    def specs(self) -> tuple[LevelSpec, ...]:
        """All levels, coarse to fine."""

    @property
    def image_processor(self) -> Any:
        """The `hiergen.ImageProcessor` of this model's images.

        Raises:
            ValueError: If the model is not one of images.
        """
        import hiergen

        if "image_size" not in self.config:
            raise ValueError(f"{type(self).__name__} has no image_processor: it does not encode images")
        return hiergen.ImageProcessor(self.config["image_size"], self.config.get("in_channels", 3))

    def compile_decoding(self, **options: Any) -> Any:
        """Compile the modules that do the work of `decode`, in place; return the model. The state dict keeps its names.

        Args:
            options: Arguments of `torch.compile`.
        """
        for name in self._decoding_modules:
            self.get_submodule(name).compile(**options)
        return self

    def _to_images(self, data: Pictures) -> Tensor:
        """Return what `encode` is given as images on the model's device: tensors as they are, with their range checked.

        Raises:
            ValueError: If values leave [-1, 1].
        """
        if not isinstance(data, Tensor):
            return self.image_processor(data).to(self.device)
        check_range(data)
        return data

    @property
    def decodable_levels(self) -> tuple[int, ...]:
        """How many levels `decode` can work from: every number that it accepts, ascending; the last one is all levels."""
        return tuple(range(1, len(self.specs) + 1))

    @abc.abstractmethod
    def encode(self, data: Tensor, *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the tokens of a batch. `rng` is read only where the bottleneck samples; None takes the mode."""

    @abc.abstractmethod
    def decode(self, pyramid: TokenPyramid) -> Decoded:
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


def check_range(images: Tensor) -> None:
    """Check that images are floats in [-1, 1]; under `torch.compile`, `torch.export` and on the meta device values are not looked at.

    Raises:
        ValueError: If a value lies outside, or is NaN.
        TypeError: If the values are not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(
            f"images have dtype {images.dtype}, expected floating point in [-1, 1]: scale with x / 127.5 - 1"
        )
    if torch.compiler.is_compiling() or images.is_meta or not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    # A thousandth is what scaling of pictures and rounding to bfloat16 may add.
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"images span {low:.4g} to {high:.4g}, expected values in [-1, 1]: scale with x / 127.5 - 1")


def check_pyramid(pyramid: TokenPyramid, specs: tuple[LevelSpec, ...]) -> None:
    """Check that a pyramid holds all levels of `specs` or a prefix of them.

    Raises:
        ValueError: If it was made by another tokenizer.
    """
    if pyramid.specs != specs[: len(pyramid)]:
        raise ValueError(
            f"the pyramid's levels are {pyramid.specs}, this model's are {specs}: they come from another tokenizer"
        )
