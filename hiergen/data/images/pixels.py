"""From PIL pictures to tensors in [-1, 1] and back: crop, scale, round.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hiergen.data.images.modes import BACKGROUND, to_color


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    """Return the central square of `picture` at `size` x `size` pixels.

    The ADM rule: halve with a box filter while the short side is at least twice `size`, then bicubic to a short side of `size`,
    then the central crop with floored offsets.

    Source:
        Diffusion Models Beat GANs, arXiv:2105.05233 (its preprocessing, which the field's ImageNet figures share).
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def on_white_square(picture: Image.Image) -> Image.Image:
    """Return a picture in the middle of the smallest white square that holds it, in RGB; what was transparent is white."""
    picture = to_color(picture, "RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), BACKGROUND)
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB")


def to_tensor(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """Return an RGB picture as float32 in [-1, 1]: value k of 255 becomes k / 127.5 - 1."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).div(127.5).sub(1)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> Any:
    """Return images of [-1, 1] as uint8: clamped and rounded to the nearest of 256 values."""
    return images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pictures(images: Float[Tensor, "b c h w"]) -> list[Image.Image]:
    """Return a batch of images of [-1, 1] as PIL images."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]
