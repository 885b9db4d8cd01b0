"""From pictures as people have them (PIL, arrays, tensors) to the images that a tokenizer takes, and back.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hiergen.data.images.modes import to_color
from hiergen.data.images.pixels import center_crop, to_pictures, to_tensor
from hiergen.tokenizers.base import check_range


class ImageProcessor:
    """Makes square images of one size, in [-1, 1], of pictures: the short side is scaled, the middle is cut out.

    PIL pictures of any mode are turned upright by their EXIF orientation, transparency is put on white, deep grey values are scaled; they
    are scaled by the ADM rule, as in training. Arrays of floats and tensors are scaled bicubically with antialiasing.

    Args:
        size: Height and width of the images in pixels.
        channels: 3, or 1 for grey images.

    Raises:
        ValueError: If `channels` is another number, or `size` is below 1.

    Example:
        >>> processor = ImageProcessor(size=256)
        >>> pyramid = tokenizer.encode(processor(Image.open("cat.png")))
    """

    def __init__(self, size: int, channels: int = 3) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}, expected 3, or 1 for grey images")
        self.size, self.channels = size, channels

    def __call__(self, images: Any) -> Float[Tensor, "b c h w"]:
        """Return images as float32 in [-1, 1].

        Args:
            images: One of these, or a list of them: a PIL picture; an array of channels last, `(h, w)`, `(h, w, c)` or with a batch before
                them, uint8 or floats in [0, 1]; a tensor `(c, h, w)` or `(b, c, h, w)` of floats in [-1, 1].

        Raises:
            ValueError: If there is no image, values leave their range, or a shape is another.
            TypeError: If it is none of these, or of another dtype.
        """
        given = images if isinstance(images, list | tuple) else [images]
        parts = [self._one(image) for image in given]
        if not sum(len(part) for part in parts):
            raise ValueError("images is empty, expected at least one image")
        return torch.cat(parts)

    def postprocess(self, images: Float[Tensor, "b c h w"], output_type: str = "pil") -> Any:
        """Return images of [-1, 1] as PIL pictures ("pil"), as an array of [0, 1], channels last ("np"), or as they are ("pt").

        Raises:
            ValueError: If `output_type` is unknown.
        """
        if output_type == "pil":
            return to_pictures(images.expand(-1, 3, -1, -1))
        if output_type == "np":
            return images.detach().movedim(1, -1).to("cpu", torch.float32).clamp(-1, 1).add(1).div(2).numpy()
        if output_type == "pt":
            return images
        raise ValueError(f"output_type is {output_type!r}, expected 'pil', 'np' or 'pt'")

    def _one(self, image: Any) -> Tensor:
        if isinstance(image, Image.Image):
            return self._picture(image)
        if isinstance(image, Tensor):
            return self._tensor(image)
        if isinstance(image, np.ndarray):
            return self._array(image)
        raise TypeError(f"images hold a {type(image).__name__}, expected PIL pictures, arrays or tensors")

    def _picture(self, picture: Image.Image) -> Tensor:
        picture = center_crop(to_color(picture), self.size)
        return to_tensor(picture.convert("L") if self.channels == 1 else picture)[None, : self.channels]

    def _array(self, array: np.ndarray) -> Tensor:
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
            raise ValueError(
                f"an image is an array of shape {array.shape}, expected (h, w, c) or (b, h, w, c), c 1 to 4"
            )
        batch = array if array.ndim == 4 else array[None]
        if batch.dtype == np.uint8:
            return torch.cat(
                [self._picture(Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one)) for one in batch]
            )
        if batch.dtype.kind != "f":
            raise TypeError(f"an image is an array of {array.dtype}, expected uint8, or floats in [0, 1]")
        low, high = float(batch.min()), float(batch.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"an array spans {low:.4g} to {high:.4g}, expected floats in [0, 1]: scale with x / 255")
        return self._tensor(torch.from_numpy(batch[..., :3].astype(np.float32)).movedim(-1, 1) * 2 - 1)

    def _tensor(self, images: Tensor) -> Tensor:
        batch = images if images.ndim == 4 else images[None]
        if batch.ndim != 4 or batch.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(images.shape)}, expected (c, h, w) or (b, c, h, w), c 1 or 3")
        check_range(batch)
        batch = batch.float()
        if batch.shape[1] != self.channels:
            batch = batch.mean(dim=1, keepdim=True) if self.channels == 1 else batch.expand(-1, 3, -1, -1)
        height, width = batch.shape[2:]
        if (height, width) == (self.size, self.size):
            return batch
        scale = self.size / min(height, width)
        shape = [round(height * scale), round(width * scale)]
        batch = F.interpolate(batch, size=shape, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        top, left = ((side - self.size) // 2 for side in shape)
        return batch[:, :, top : top + self.size, left : left + self.size]
