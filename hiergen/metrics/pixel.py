"""Distances between images, pixel by pixel.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def psnr(images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each image in dB; infinite where both are equal.

    Both are images of [-1, 1], clamped; the peak is the width of that range, which equals the usual ratio in [0, 1].
    """
    difference = images.float().clamp(-1, 1) - reference.float().clamp(-1, 1)
    return -10 * (difference / 2).square().mean(dim=(1, 2, 3)).log10()
