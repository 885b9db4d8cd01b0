"""Networks of timm as pyramid encoders: one layout, coarse to fine, and a refusal of what is no pyramid.

Letters: `b` batch, `c h w` a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from hiergen.nn.constants import channel_statistics
from hiergen.pretrained.teachers import timm_network
from hiergen.tokenizers.pyramid.encoder import PyramidEncoder


class TimmPyramid(PyramidEncoder):
    """A network of timm with `features_only`, normalized as its weights expect.

    Families that must be told the size of the images (Swin, Hiera) are built for it, the others are not. What the maps of a size look
    like is found without computing any, on PyTorch's meta device.

    Args:
        name: Name in timm, with the tag of its weights.
        image_size: Height and width of the images in pixels.
        in_channels: Channels of the images.
        weights: "random", a file, or None for timm's cache or download.
        options: Options of `timm.create_model`, e.g. `out_indices` or smaller widths.

    Raises:
        ValueError: If the network does not take such images, has maps of one stride only, or maps that do not follow the image.
        FileNotFoundError: If weights are wanted that are not there.
        ImportError: If timm is not installed.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: tuple[int, int],
        in_channels: int = 3,
        weights: str | None = "random",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.in_channels = name, in_channels
        self._grids: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
        if in_channels != 3:
            given["in_chans"] = in_channels
        # Without memory there is nothing to load weights into: that is how models are counted.
        is_empty = torch.get_default_device().type == "meta"
        self.network = self._build(image_size, "random" if is_empty else weights, given)
        reductions = self.network.feature_info.reduction()
        if len(set(reductions)) < 2:
            raise ValueError(
                f"backbone 'timm:{name}' has features of the strides {list(reductions)}, expected at least two different ones: it is no "
                "pyramid"
            )
        self.strides = tuple(reversed(reductions))
        self.channels = tuple(reversed(self.network.feature_info.channels()))
        self._refuse_fixed_maps(image_size)
        known = self.network.pretrained_cfg
        mean, std = (list(known[key])[:1] * in_channels if in_channels != 3 else known[key] for key in ("mean", "std"))
        self._constants = channel_statistics(mean, std)

    def _build(self, image_size: tuple[int, int], weights: str | None, options: dict[str, Any]) -> Any:
        """Return the network, built for the size where its family asks for that."""
        failures = []
        for sized in ({"img_size": image_size}, {}):
            try:
                network = timm_network(self.name, weights, features_only=True, **sized, **options)
            except TypeError as error:
                # Most families know no `img_size`; any other argument that they do not know is the caller's.
                if sized and "img_size" in str(error):
                    continue
                raise ValueError(f"backbone 'timm:{self.name}' does not take the options {options}: {error}") from error
            except AssertionError as error:
                failures.append(str(error))
                continue
            try:
                self._grids[image_size] = _grids(network, image_size, self.in_channels)
            except (RuntimeError, AssertionError, ValueError) as error:
                failures.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
                continue
            return network
        height, width = image_size
        raise ValueError(
            f"backbone 'timm:{self.name}' does not take images of {height} x {width} pixels: {' | '.join(failures)}"
        )

    def _refuse_fixed_maps(self, image_size: tuple[int, int]) -> None:
        """Refuse a network that resizes every image to one size of its own."""
        larger = (2 * image_size[0], 2 * image_size[1])
        try:
            found = _grids(self.network, larger, self.in_channels)
        except (RuntimeError, AssertionError, ValueError):
            # It is built for one size, and says so.
            return
        own = self._grids[image_size]
        if found == own and own[-1] != (1, 1):
            raise ValueError(
                f"backbone 'timm:{self.name}' has maps of {list(own)} for images of any size, expected maps that follow the image"
            )

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """Return rows and columns of each map, coarse to fine; how odd maps are rounded is the family's affair."""
        size = (height, width)
        if size not in self._grids:
            self._grids[size] = _grids(self.network, size, self.in_channels)
        return self._grids[size]

    def _features(self, images: Tensor) -> list[Tensor]:
        constants = self._constants.on(images.device)
        x = ((images + 1) / 2 - constants["mean"]) / constants["std"]
        maps = self.network(x.to(next(self.network.parameters()).dtype))
        return [_channels_first(self.network, part) for part in reversed(maps)]


def _channels_first(network: Any, part: Tensor) -> Tensor:
    return part.permute(0, 3, 1, 2) if str(network.output_fmt).endswith("NHWC") else part


def _grids(network: Any, size: tuple[int, int], channels: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of a network's maps, coarse to fine, without computing them."""
    state = {**network.state_dict(), **dict(network.named_buffers())}
    empty = {key: value.to("meta") for key, value in state.items()}
    images = torch.zeros(1, channels, *size, device="meta", dtype=next(network.parameters()).dtype)
    was_training = network.training
    try:
        with torch.no_grad():
            maps = functional_call(network.eval(), empty, (images,))
    finally:
        network.train(was_training)
    firsts = [_channels_first(network, part) for part in reversed(maps)]
    return tuple((part.shape[2], part.shape[3]) for part in firsts)
