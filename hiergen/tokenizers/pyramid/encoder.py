"""What every pyramid encoder is: images -> feature maps at several strides, coarse to fine; and how one is made by name.

Letters: `b` batch, `c h w` a map.
"""

from __future__ import annotations

import abc
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hiergen.config import nearest


class PyramidEncoder(nn.Module, abc.ABC):
    """Images in [-1, 1] to one map per stride, coarse to fine, always `(b, c, h, w)` in floating point.

    Attributes:
        strides: Pixels along a side of a cell, of each map, coarse to fine.
        channels: Channels of each map.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]

    @abc.abstractmethod
    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return rows and columns of each map, coarse to fine, for images of a size."""

    @abc.abstractmethod
    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the maps, coarse to fine."""

    def forward(self, images: Float[Tensor, "b channels height width"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the maps, coarse to fine."""
        height, width = images.shape[2:]
        maps = self._features(images)
        found, wanted = tuple(tuple(part.shape[2:]) for part in maps), self.grids(height, width)
        assert found == wanted, f"maps of {found} where {wanted} were computed"
        return maps

    @classmethod
    def create(
        cls,
        name: str,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        weights: str | None = "random",
        options: Mapping[str, Any] | None = None,
    ) -> PyramidEncoder:
        """Return an encoder by name.

        Args:
            name: "timm:" and the name of a network in timm, or "mixer:" and a name of `hiergen.nn.mixers.create.MIXERS`.
            image_size: Height and width of the images in pixels.
            in_channels: Channels of the images.
            weights: Weights of a network of timm: "random", a file, or None for timm's cache or download.
            options: Options of `timm.create_model`, or of `MixerPyramid`.

        Raises:
            ValueError: If the name or an option is unknown, the network is no pyramid, or weights are given to our own stages.
        """
        options = dict(options or {})
        family, _, rest = name.partition(":")
        if family == "timm" and rest:
            from hiergen.tokenizers.pyramid.timm_encoder import TimmPyramid

            return TimmPyramid(rest, image_size=image_size, in_channels=in_channels, weights=weights, options=options)
        if family != "mixer" or not rest:
            raise ValueError(
                f"backbone is {name!r}, expected 'timm:' or 'mixer:' and a name, e.g. 'mixer:neighborhood'"
            )
        if weights != "random":
            raise ValueError(
                f"backbone_weights is {weights!r}, expected 'random' with {name!r}, which nobody published"
            )
        kind = importlib.import_module("hiergen.tokenizers.pyramid.stages").MixerPyramid
        known = [key for key in inspect.signature(kind).parameters if key not in ("mixer", "in_channels")]
        for key in options:
            if key not in known:
                raise ValueError(f"{name!r} has no option {key!r}{nearest(key, known)}")
        made: PyramidEncoder = kind(rest, in_channels=in_channels, **options)
        return made
