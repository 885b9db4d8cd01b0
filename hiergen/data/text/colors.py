"""The main color of a picture in a word, so that captions can say it."""

from __future__ import annotations

import torch
from torch import Tensor

#: The basic color terms of English (Berlin and Kay, 1969), and the hues in degrees at which the bright ones end.
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white")
_HUE_ENDS = (15.0, 40.0, 70.0, 165.0, 260.0, 310.0, 345.0, 360.0)


def main_color(image: Tensor) -> str:
    """Return the color term of the largest part of a picture that is not its background.

    The background is what differs from the corners' common color by less than a tenth; without a common color nothing is.

    Args:
        image: One picture, (3, height, width), in [-1, 1].

    Raises:
        ValueError: If it has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (3, height, width)")
    pixels = (image.float().flatten(1).T + 1) / 2
    corners = ((image[:, [0, 0, -1, -1], [0, -1, 0, -1]].float() + 1) / 2).T
    if (corners - corners[0]).abs().max() < 0.1:
        seen = pixels[(pixels - corners[0]).abs().amax(dim=1) >= 0.1]
        pixels = seen if len(seen) else pixels
    return COLORS[int(_terms(pixels).bincount(minlength=len(COLORS)).argmax())]


def _terms(pixels: Tensor) -> Tensor:
    """Return the index in `COLORS` of each of (count, 3) pixels in [0, 1]."""
    bright, low = pixels.amax(dim=1), pixels.amin(dim=1)
    span = bright - low
    red, green, blue = pixels.unbind(dim=1)
    sector = torch.stack(((green - blue) % (6 * span.clamp(min=1e-6)), blue - red + 2 * span, red - green + 4 * span))
    hue = 60 * sector.gather(0, pixels.argmax(dim=1)[None])[0] / span.clamp(min=1e-6)
    terms = torch.bucketize(hue, torch.tensor(_HUE_ENDS), right=True).clamp(max=len(_HUE_ENDS) - 1)
    terms = torch.where(terms == len(_HUE_ENDS) - 1, 0, terms)
    saturation = span / bright.clamp(min=1e-6)
    terms = torch.where((terms == 0) & (saturation < 0.5) & (bright > 0.8), COLORS.index("pink"), terms)
    is_brown = ((terms == 1) & (bright < 0.65)) | ((terms <= 1) & (bright < 0.8) & (saturation < 0.75))
    terms = torch.where(is_brown, COLORS.index("brown"), terms)
    grays = torch.where(bright < 0.9, COLORS.index("gray"), COLORS.index("white"))
    terms = torch.where(saturation < 0.15, grays, terms)
    return torch.where(bright < 0.25, COLORS.index("black"), terms)
