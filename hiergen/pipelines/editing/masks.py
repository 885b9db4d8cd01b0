"""Masks over pictures: what is to be made, how what is known comes back into it, and pictures that are moved on their canvas.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import center_crop


def read_masks(mask_image: Any, size: int, count: int) -> Bool[Tensor, "b h w"]:
    """Return masks, True where a pixel is to be made, scaled and cropped as `ImageProcessor` does with pictures.

    Args:
        mask_image: One of these, or a list of them: a PIL picture of any mode, white where pixels are to be made; an array or a tensor
            `(h, w)`, `(b, h, w)` or `(b, 1, h, w)` of booleans, of floats in [0, 1] or of uint8. From the middle of the range on a pixel is
            to be made.
        size: Height and width of the masks in pixels.
        count: Number of pictures; one mask serves all of them.

    Raises:
        ValueError: If a shape or a value is another, or there are neither one nor `count` masks.
        TypeError: If it is none of these.
    """
    given = mask_image if isinstance(mask_image, list | tuple) else [mask_image]
    planes = [plane for one in given for plane in _planes(one)]
    if len(planes) not in (1, count):
        raise ValueError(f"mask_image holds {len(planes)} masks, expected one for all, or {count}, one per image")
    cropped = [center_crop(Image.fromarray(plane.astype(np.uint8) * 255), size) for plane in planes]
    masks = torch.from_numpy(np.stack([np.asarray(picture) >= 128 for picture in cropped]))
    return masks.expand(count, -1, -1)


def _planes(one: Any) -> list[np.ndarray]:
    """Return boolean planes `(h, w)` of what a caller gave for one mask or a batch of them."""
    if isinstance(one, Image.Image):
        return [np.asarray(one.convert("L")) >= 128]
    if not isinstance(one, np.ndarray | Tensor):
        raise TypeError(f"mask_image holds a {type(one).__name__}, expected PIL pictures, arrays or tensors")
    array = one.detach().cpu().numpy() if isinstance(one, Tensor) else one
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"mask_image has shape {array.shape}, expected (h, w), (b, h, w) or (b, 1, h, w)")
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(
            f"mask_image spans {array.min():.4g} to {array.max():.4g}, expected booleans, floats in [0, 1] or uint8"
        )
    if array.dtype.kind not in "fb" and array.dtype != np.uint8:
        raise TypeError(f"mask_image is of {array.dtype}, expected booleans, floats in [0, 1] or uint8")
    plane = array >= (128 if array.dtype == np.uint8 else 0.5)
    return list(plane if plane.ndim == 3 else plane[None])


def soften(masks: Bool[Tensor, "b h w"], feather: int) -> Float[Tensor, "b 1 h w"]:
    """Return how much of each pixel is made: 1 inside of the mask, falling to 0 within `2 * feather` pixels outside of it."""
    soft = masks[:, None].float()
    if not feather:
        return soft
    side = 2 * feather + 1
    grown = F.max_pool2d(soft, side, stride=1, padding=feather)
    return F.avg_pool2d(grown, side, stride=1, padding=feather, count_include_pad=False)


def fill_holes(images: Float[Tensor, "b c h w"], masks: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
    """Return images whose masked pixels continue the others smoothly; 0 where everything is masked.

    An image of half the size is filled first, in which a pixel is the average of those of its four that are known; it gives what is missing.
    """
    return _fill(images, (~masks)[:, None].to(images.dtype))


def _fill(images: Tensor, known: Tensor) -> Tensor:
    if bool(known.all()) or max(images.shape[-2:]) == 1:
        return images * known
    total = F.avg_pool2d(images * known, 2, ceil_mode=True, count_include_pad=False)
    share = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    coarse = _fill(total / share.clamp_min(1e-6), (share > 0).to(images.dtype))
    smooth = F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, images, smooth)


def place(
    images: Float[Tensor, "b c h w"], *, shift: tuple[int, int] = (0, 0), scale: float = 1.0
) -> tuple[Float[Tensor, "b c h w"], Bool[Tensor, "b h w"]]:
    """Return pictures made smaller and moved on canvases of their old size, and masks of what is empty there.

    Args:
        images: Pictures in [-1, 1].
        shift: Pixels by which they move to the right and down; negative numbers move to the left and up.
        scale: Side of the pictures on their canvases, above 0 to 1.

    Raises:
        ValueError: If `scale` is out of range, nothing of the pictures is left, or nothing is empty.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale is {scale}, expected above 0 to 1")
    height, width = images.shape[-2:]
    sides = max(round(height * scale), 1), max(round(width * scale), 1)
    if scale < 1:
        images = F.interpolate(images, size=sides, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    top, left = (height - sides[0]) // 2 + shift[1], (width - sides[1]) // 2 + shift[0]
    rows = slice(max(top, 0), min(top + sides[0], height))
    columns = slice(max(left, 0), min(left + sides[1], width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        raise ValueError(f"shift is {shift}, which leaves nothing of pictures of {sides[1]}x{sides[0]} pixels")
    if (rows, columns) == (slice(0, height), slice(0, width)):
        raise ValueError(f"shift is {shift} and scale is {scale}: nothing is empty, expected some place to fill")
    moved = images.new_zeros(*images.shape[:2], height, width)
    part = images[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    moved[..., rows, columns] = part
    masks = torch.ones(len(images), height, width, dtype=torch.bool, device=images.device)
    masks[:, rows, columns] = False
    return moved, masks
