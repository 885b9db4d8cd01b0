"""Distances between images, pixel by pixel or window by window.

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: Exponents of MS-SSIM's five scales, fine to coarse.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
#: The coarsest of MS-SSIM's scales must still hold a window.
MS_SSIM_MIN_SIDE = WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)


def psnr(images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each image in dB; infinite where both are equal.

    Both are images of [-1, 1], clamped; the peak is the width of that range, which equals the usual ratio in [0, 1].
    """
    difference = images.float().clamp(-1, 1) - reference.float().clamp(-1, 1)
    return -10 * (difference / 2).square().mean(dim=(1, 2, 3)).log10()


def ssim(images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the structural similarity of each image, 1 for equal ones: the mean over channels and whole windows.

    Both are images of [-1, 1], clamped. Windows are Gaussian, 11 pixels wide with deviation 1.5; moments are those of the window
    (not of a sample); K1 = 0.01, K2 = 0.03.

    Raises:
        ValueError: If a side is shorter than a window.

    Source:
        Image Quality Assessment: From Error Visibility to Structural Similarity, 10.1109/TIP.2003.819861.
    """
    _check_side(images, WINDOW, "SSIM")
    luminance, contrast = _similarity(_unit(images), _unit(reference))
    return (luminance * contrast).mean(dim=(1, 2, 3))


def ms_ssim(images: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Return the structural similarity of each image over five scales, each half as large as the one before.

    The contrast terms of all scales and the luminance of the coarsest, each a mean over windows by channel, to the powers of the
    paper; a negative mean counts as 0. Between scales 2 x 2 pixels are averaged.

    Raises:
        ValueError: If a side is shorter than 176 pixels: the coarsest scale would hold no window.

    Source:
        Multi-Scale Structural Similarity for Image Quality Assessment, 10.1109/ACSSC.2003.1292216.
    """
    _check_side(images, MS_SSIM_MIN_SIDE, "MS-SSIM")
    x, y = _unit(images), _unit(reference)
    result = torch.ones(x.shape[:2], device=x.device, dtype=x.dtype)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        luminance, contrast = _similarity(x, y)
        is_last = scale == len(MS_SSIM_WEIGHTS) - 1
        term = (luminance * contrast if is_last else contrast).mean(dim=(2, 3))
        result = result * term.clamp(min=0) ** weight
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result.mean(dim=1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the luminance and the contrast-and-structure terms of every whole window, `(b, c, h - 10, w - 10)`."""
    c1, c2 = 0.01**2, 0.03**2
    # One filter pass over the five images whose local means are needed.
    means = _blur(torch.cat((x, y, x * x, y * y, x * y), dim=1))
    mean_x, mean_y, xx, yy, xy = means.chunk(5, dim=1)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return luminance, contrast


def _blur(x: Tensor) -> Tensor:
    kernel = _window(x.device, x.dtype)
    channels = x.shape[1]
    x = F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)


@functools.lru_cache(maxsize=8)
def _window(device: torch.device, dtype: torch.dtype) -> Tensor:
    place = torch.arange(WINDOW, device=device, dtype=dtype) - WINDOW // 2
    kernel = (-(place**2) / (2 * SIGMA**2)).exp()
    return kernel / kernel.sum()


def _unit(images: Tensor) -> Tensor:
    wide = images if images.dtype == torch.float64 else images.float()
    return (wide.clamp(-1, 1) + 1) / 2


def _check_side(images: Tensor, side: int, name: str) -> None:
    if min(images.shape[2:]) < side:
        raise ValueError(f"{name} needs images of at least {side} x {side} pixels, got {tuple(images.shape[2:])}")
