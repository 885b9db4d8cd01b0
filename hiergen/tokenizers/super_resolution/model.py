"""A tokenizer of larger images: another tokenizer of images, and behind its decoder a network that makes the image larger.

    tokens = base.encode(image, made smaller)
    image  = upscaler(base.decode(tokens))

The tokens are those of the base, so that its generators go on to work. The base is frozen: the upscaler learns from what the base rebuilds,
and so to mend its errors too.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiergen.checked import Checked, Count
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import model_class
from hiergen.tokenizers.base import Tokenizer, TokenizerOutput, check_images, configured
from hiergen.tokenizers.super_resolution.network import DenseResidualUpscaler

#: Entry of a base's config that names its class.
_CLASS = "class"


@dataclasses.dataclass(frozen=True)
class SuperResolutionConfig(Checked):
    """The keyword arguments of `hiergen.tokenizers.super_resolution.model.SuperResolution`."""

    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Config of the tokenizer of the small images, with its class under "class"; it may be empty where `base_weights` is a folder."""
    base_weights: str = "random"
    """Weights of the base: "random", or the folder of a saved tokenizer, whose config replaces `base`. It is read once; a saved model has
    its own, and says "random"."""
    image_size: Count | None = None
    """Height and width of the images in pixels: `scale` times those of the base, also where it is None."""
    scale: Count = 2
    """How much larger the images are than those of the base: 2, 4, 8, ..."""
    dim: Count = 180
    """Channels of the upscaler."""
    growth: Count = 32
    """Channels that a block of the upscaler adds."""
    groups: Count = 6
    """Groups of five blocks."""
    num_heads: Count = 6
    """Heads of the attention; where they do not divide a block's width, the remainder is taken from them."""
    last_dim: Count = 64
    """Channels of the upscaler between its groups and the image."""
    window: Count = 16
    """Side of the windows of the attention, in pixels of the small image."""
    skip: Literal["bicubic", "none"] = "bicubic"
    """Add what is learned to bicubic interpolation, or predict the whole image as the published network does."""


class SuperResolution(Tokenizer):
    """Any tokenizer of square images with an upscaler behind it, which alone is trained.

    Options are the fields of `SuperResolutionConfig`, as keyword arguments. Images are made smaller for the base by bicubic interpolation.

    Raises:
        ValueError: If an option is unknown, the base is no tokenizer of square images, or sizes do not fit together.
        FileNotFoundError: If the folder of the base is not there.

    Source:
        Our own use of DRCT's network (arXiv:2404.00722), which was published for pictures that were made smaller.
    """

    _supports_gradient_checkpointing = True
    _decoding_modules = ("upscaler",)

    @configured(SuperResolutionConfig)
    def __init__(self, layout: SuperResolutionConfig) -> None:
        super().__init__()
        self.layout = layout
        self.base_tokenizer = _make_base(layout)
        # What was read from elsewhere is the model's own from here on.
        self.register_to_config(base_weights="random", base=_describe(self.base_tokenizer))
        if "image_size" not in self.base_tokenizer.config or self.base_tokenizer.config.get("image_width") is not None:
            raise ValueError(f"base is a {type(self.base_tokenizer).__name__}, expected a tokenizer of square images")
        self._small = self.base_tokenizer.config["image_size"]
        size = layout.scale * self._small
        if layout.image_size not in (None, size):
            raise ValueError(
                f"image_size is {layout.image_size}, expected {size}, {layout.scale} times the base's {self._small}"
            )
        channels = self.base_tokenizer.config.get("in_channels", 3)
        self.register_to_config(image_size=size)
        self.upscaler = DenseResidualUpscaler(
            scale=layout.scale,
            in_channels=channels,
            dim=layout.dim,
            growth=layout.growth,
            groups=layout.groups,
            num_heads=layout.num_heads,
            last_dim=layout.last_dim,
            window=layout.window,
            skip=layout.skip,
        )
        self.base_tokenizer.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def of(cls, tokenizer: Tokenizer, **options: Any) -> SuperResolution:
        """Return a tokenizer of larger images with a copy of a trained one as its base, and a random upscaler.

        Args:
            tokenizer: The base.
            options: Fields of `SuperResolutionConfig`.
        """
        made: Any = cast(Any, cls)(base=_describe(tokenizer), **options)
        made.base_tokenizer.load_state_dict(tokenizer.state_dict())
        return made.to(device=tokenizer.device, dtype=tokenizer.dtype)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self.base_tokenizer.specs

    @property
    def decodable_levels(self) -> tuple[int, ...]:
        """How many levels the base can work from."""
        return self.base_tokenizer.decodable_levels

    @property
    def output_weight(self) -> Tensor:
        """The last weight before the image: its gradients balance an adversarial loss against the reconstruction."""
        return self.upscaler.last.weight

    def train(self, mode: bool = True) -> SuperResolution:
        """Set train mode of the upscaler alone: the base is frozen."""
        super().train(mode)
        self.base_tokenizer.eval()
        return self

    def encode(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenPyramid:
        """Return the base's tokens of images in [-1, 1], made smaller.

        Args:
            data: Images.
            rng: Handed on to the base.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        with torch.no_grad():
            return self.base_tokenizer.encode(self.reduce(data), rng=rng)

    def decode(self, pyramid: TokenPyramid) -> Float[Tensor, "b c h w"]:
        """Return large images, about [-1, 1] but not clamped, of all levels or of a prefix that the base can decode.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        return self.upscaler(self.decode_small(pyramid))

    def decode_small(self, pyramid: TokenPyramid) -> Float[Tensor, "b c small_h small_w"]:
        """Return what the base decodes, clamped to [-1, 1], without gradients.

        Raises:
            ValueError: If the pyramid comes from another tokenizer.
        """
        with torch.no_grad():
            return self.base_tokenizer.decode(pyramid).clamp(-1, 1)

    def forward(self, data: Float[Tensor, "b c h w"], *, rng: torch.Generator | None = None) -> TokenizerOutput:
        """Encode and decode, with gradients to the upscaler. There are no losses of the base's.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        pyramid = self.encode(data)
        return TokenizerOutput(self.decode(pyramid), pyramid)

    def reduce(self, data: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c small_h small_w"]:
        """Return images of the base's size.

        Raises:
            ValueError: If the images are of another size.
            TypeError: If they are not floating point.
        """
        size = self.config["image_size"]
        check_images(data, height=size, width=size, channels=self.base_tokenizer.config.get("in_channels", 3))
        small = F.interpolate(data, size=(self._small, self._small), mode="bicubic", antialias=True)
        return small.clamp(-1, 1)


def _make_base(layout: SuperResolutionConfig) -> Tokenizer:
    """Return the base, with weights from its folder where there is one."""
    if layout.base_weights == "random":
        return _build(layout.base)
    folder = Path(layout.base_weights)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"base_weights is {layout.base_weights!r}, expected 'random' or the folder of a saved tokenizer"
        )
    stored = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in stored.items() if not name.startswith("_")}
    if torch.get_default_device().type == "meta":
        # Without memory there is nothing to load weights into: that is how models are counted.
        return _build({_CLASS: stored.get("_class_name"), **config})
    kind = _tokenizer_class(stored.get("_class_name"))
    return kind.from_pretrained(folder, use_safetensors=True)


def _build(config: Mapping[str, Any]) -> Tokenizer:
    options = dict(config)
    return _tokenizer_class(options.pop(_CLASS, None))(**options)


def _tokenizer_class(name: Any) -> Any:
    if name is None:
        raise ValueError(f"base has no entry {_CLASS!r}, expected the class of a tokenizer")
    kind = model_class(str(name))
    if not issubclass(kind, Tokenizer):
        raise ValueError(f"base is a {name}, expected a tokenizer of square images")
    return kind


def _describe(tokenizer: Tokenizer) -> dict[str, Any]:
    config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    return {_CLASS: type(tokenizer).__name__, **config}
