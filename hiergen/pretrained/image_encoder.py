"""Images -> the features that a generator is conditioned on: CLIP and DINOv2 through transformers, or a small network of our own.

Letters: `b` batch, `h w` image, `n` rows of features, `c` their channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.environment import require
from hiergen.nn.constants import IMAGENET_STATISTICS

#: Mean and deviation of pixels in [0, 1] that each kind of network was trained with.
_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "dinov2": IMAGENET_STATISTICS,
    "conv": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class ConvEncoder(nn.Module):
    """Strided convolutions that halve the image until 4 x 4 rows are left: a stand-in where there is no pretrained encoder.

    It knows what it was trained on and nothing else.

    Args:
        image_size: Height and width of the images in pixels, 4 times a power of two.
        dim: Channels of the features.
    """

    ROWS = 16

    def __init__(self, *, image_size: int = 64, dim: int = 64) -> None:
        super().__init__()
        halvings = image_size.bit_length() - 3
        if halvings < 1 or image_size != 4 << halvings:
            raise ValueError(f"image_size is {image_size}, expected 4 times a power of two, at least 8")
        widths = [3, *(max(8, dim >> (halvings - 1 - k)) for k in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        return self.layers(pixel_values).flatten(2).transpose(1, 2)


class ImageEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both bases define config_name
    """One or several frozen image networks; their features are a generator's condition, of shapes `feature_shapes`.

    CLIP gives its last hidden state before the final norm, DINOv2 its last hidden state after it: class token and patches.

    Args:
        encoders: For each network its "kind", "clip", "dinov2" or "conv", and its "config", as transformers' `CLIPVisionConfig`,
            `Dinov2Config` or `ConvEncoder` take it.

    Raises:
        ValueError: If there is no network, or a kind is unknown.
        ImportError: If transformers is needed and not installed.

    Source:
        MAR-3D, arXiv:2503.20519, conditions on CLIP and DINOv2. Its release has CLIP ViT-L/14 alone; how the paper joins the two
        is not stated: here along the sequence, by the generator.
    """

    @register_to_config
    def __init__(self, *, encoders: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders is empty, expected at least one network")
        self.networks = nn.ModuleList(_network(entry["kind"], entry.get("config", {})) for entry in encoders)
        self.eval().requires_grad_(False)

    @classmethod
    def from_transformers(cls, *, clip: str | Path | None = None, dinov2: str | Path | None = None) -> ImageEncoder:
        """Return published networks: folders or Hub ids, e.g. "openai/clip-vit-large-patch14" and "facebook/dinov2-base".

        Raises:
            ValueError: If neither is given.
            OSError: If a network is neither a folder nor in the cache, and cannot be downloaded.
        """
        transformers = require("transformers", "shapes", "an encoder of pictures")
        loaded = [
            (kind, getattr(transformers, name).from_pretrained(path))
            for kind, name, path in (("clip", "CLIPVisionModel", clip), ("dinov2", "Dinov2Model", dinov2))
            if path is not None
        ]
        if not loaded:
            raise ValueError("clip and dinov2 are both None, expected a folder or Hub id for at least one of them")
        encoder = cls(encoders=[{"kind": kind, "config": network.config.to_diff_dict()} for kind, network in loaded])
        for mine, (_, network) in zip(encoder.networks, loaded, strict=True):
            mine.load_state_dict(network.state_dict())
        return encoder

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(entry["kind"] for entry in self.config["encoders"])

    @property
    def feature_shapes(self) -> list[list[int]]:
        """`[rows, channels]` of every network's features, as a generator's config takes them."""
        shapes = []
        for kind, network in zip(self.kinds, self.networks, strict=True):
            if kind == "conv":
                last: Any = network.layers[-1]  # type: ignore[union-attr,index]
                shapes.append([ConvEncoder.ROWS, last.out_channels])
            else:
                config: Any = network.config
                shapes.append([(config.image_size // config.patch_size) ** 2 + 1, config.hidden_size])
        return shapes

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b n c"]]:
        """Return the features of each network.

        Args:
            images: Square images in [-1, 1] of any size; they are resized (bicubic, antialiased) and standardized for each network.

        Raises:
            ValueError: If the images are not square.
        """
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected square ones: crop or pad them first")
        features = []
        for kind, network in zip(self.kinds, self.networks, strict=True):
            size = self._image_size(kind, network)
            weight = next(network.parameters())
            pixels = images.to(weight.device).float()
            if pixels.shape[-1] != size:
                pixels = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)
            mean, std = (pixels.new_tensor(value)[:, None, None] for value in _STATISTICS[kind])
            output = network(pixel_values=(((pixels + 1) / 2 - mean) / std).to(weight.dtype))
            features.append(output if kind == "conv" else output.last_hidden_state)
        return features

    @staticmethod
    def _image_size(kind: str, network: Any) -> int:
        if kind == "conv":
            return 4 << sum(isinstance(layer, nn.Conv2d) for layer in network.layers)
        return int(network.config.image_size)


def _network(kind: str, config: Mapping[str, Any]) -> nn.Module:
    if kind == "conv":
        return ConvEncoder(**config)
    if kind not in _STATISTICS:
        raise ValueError(f"the kind of an encoder is {kind!r}, expected one of {', '.join(_STATISTICS)}")
    transformers = require("transformers", "shapes", "an encoder of pictures")
    if kind == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config))
    return transformers.Dinov2Model(transformers.Dinov2Config(**config))
