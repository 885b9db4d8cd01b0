"""Metrics of clips: against a reference clip frame by frame, of a clip's own flicker, and between two sets of clips.

Clips are tensors in [-1, 1]; values outside are clamped. A reference is, for instance, what dense attention makes from the same noise.

Letters: `b n m` clips, `c` channels, `t h w` a clip, `d` features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.data.images.pixels import to_uint8
from hiergen.environment import require
from hiergen.metrics.frechet import Moments, frechet_distance
from hiergen.metrics.pixel import psnr

#: Frames that agree exactly have no finite PSNR; in means they count as this.
MAX_PSNR = 100.0

#: Maps (images, reference), both (b, c, h, w) in [-1, 1], to one distance for each image, (b,).
ImageDistance = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class VideoExtractor:
    """What a Fréchet distance of clips is measured on; two figures compare only under one extractor.

    Attributes:
        name: Name that stands in every report.
        description: What it is and on what it was trained.
        network: Maps uint8 clips `(b, c, t, h, w)` to features `(b, d)`.
    """

    name: str
    description: str
    network: Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class VideoDistance:
    """A Fréchet distance with what it was measured on.

    Attributes:
        distance: Fréchet distance; 0 for sets of equal mean and covariance.
        extractor: Name of the extractor.
        num_videos: Number of clips that were judged.
        num_reference: Number of clips of the reference. With fewer clips than features the distance is biased upward.
    """

    distance: float
    extractor: str
    num_videos: int
    num_reference: int


def frame_psnr(videos: Float[Tensor, "b c t h w"], reference: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t"]:
    """Return the peak signal-to-noise ratio of each frame in dB, at most `MAX_PSNR`."""
    ratio = psnr(_frames(videos), _frames(reference)).clamp(max=MAX_PSNR)
    return ratio.unflatten(0, (videos.shape[0], -1))


def frame_ssim(videos: Float[Tensor, "b c t h w"], reference: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t"]:
    """Return the structural similarity of each frame, at most 1: Gaussian windows of deviation 1.5, mean over channels.

    Raises:
        ImportError: If scikit-image is not installed.

    Source:
        Image Quality Assessment: From Error Visibility to Structural Similarity, Wang et al. 2004; computed by scikit-image.
    """
    structural_similarity = require("skimage.metrics", "eval", "SSIM").structural_similarity
    values = [
        structural_similarity(
            a, b, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(_unit(videos), _unit(reference), strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32).unflatten(0, (videos.shape[0], -1))


def frame_distance(
    videos: Float[Tensor, "b c t h w"],
    reference: Float[Tensor, "b c t h w"],
    distance: ImageDistance,
    *,
    batch_size: int = 32,
) -> Float[Tensor, "b t"]:
    """Return a distance of images for each frame, e.g. `hiergen.pretrained.perceptual.LPIPS` with its weights loaded."""
    pairs = zip(_frames(videos).split(batch_size), _frames(reference).split(batch_size), strict=True)
    with torch.no_grad():
        values = torch.cat([distance(a, b).flatten() for a, b in pairs])
    return values.unflatten(0, (videos.shape[0], -1))


def temporal_flicker(videos: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """Return how much each clip changes from frame to frame: the mean absolute difference of neighbors, pixels in [0, 1].

    Motion counts too, so a clip is compared with one of the same motion; see `flicker_error`.

    Raises:
        ValueError: If the clips have a single frame.

    Source:
        The temporal flickering of VBench, arXiv:2311.17982, without its restriction to still scenes.
    """
    return _changes(videos).abs().mean(dim=(1, 2, 3, 4))


def flicker_error(videos: Float[Tensor, "b c t h w"], reference: Float[Tensor, "b c t h w"]) -> Float[Tensor, " b"]:
    """Return the mean absolute difference between the changes from frame to frame of each clip and of its reference.

    A constant error of a clip does not count, one that comes and goes does.

    Raises:
        ValueError: If the clips have a single frame.
    """
    return (_changes(videos) - _changes(reference)).abs().mean(dim=(1, 2, 3, 4))


def compare_videos(
    videos: Float[Tensor, "b c t h w"],
    reference: Float[Tensor, "b c t h w"],
    *,
    lpips: ImageDistance | None = None,
) -> dict[str, float]:
    """Return the means over clips and frames of what this module measures against a reference.

    Args:
        videos: Clips to judge.
        reference: Clips that they should resemble, one for each.
        lpips: Perceptual distance of images; None leaves "lpips" out.

    Raises:
        ValueError: If shapes differ, or clips have a single frame.
        ImportError: If scikit-image is not installed.
    """
    if videos.shape != reference.shape:
        raise ValueError(f"videos have shape {tuple(videos.shape)}, the reference {tuple(reference.shape)}")
    scores = {
        "psnr_db": frame_psnr(videos, reference),
        "ssim": frame_ssim(videos, reference),
        "flicker": temporal_flicker(videos),
        "flicker_error": flicker_error(videos, reference),
    }
    if lpips is not None:
        scores["lpips"] = frame_distance(videos, reference, lpips)
    return {name: float(value.double().mean()) for name, value in scores.items()}


def frechet_video_distance(
    videos: Float[Tensor, "n c t h w"],
    reference: Float[Tensor, "m c t h w"],
    extractor: VideoExtractor,
    *,
    batch_size: int = 32,
) -> VideoDistance:
    """Return the Fréchet distance between the features of two sets of clips.

    Clips are rounded to 256 values first, as if they had been written to a file.

    Raises:
        ValueError: If a set holds fewer than two clips.

    Source:
        FVD, arXiv:1812.01717, which is this distance on the logits of I3D. On any other extractor it is not called FVD here.
    """
    first, second = (Moments.of(_features(part, extractor, batch_size)) for part in (videos, reference))
    return VideoDistance(frechet_distance(first, second), extractor.name, first.count, second.count)


@torch.no_grad()
def _features(videos: Tensor, extractor: VideoExtractor, batch_size: int) -> Tensor:
    return torch.cat([extractor.network(to_uint8(part)) for part in videos.split(batch_size)])


def _frames(videos: Tensor) -> Tensor:
    return videos.float().clamp(-1, 1).transpose(1, 2).flatten(0, 1)


def _unit(videos: Tensor) -> np.ndarray:
    return _frames(videos).add(1).div(2).cpu().numpy()


def _changes(videos: Tensor) -> Tensor:
    if videos.shape[2] < 2:
        raise ValueError(f"videos have {videos.shape[2]} frame, expected at least 2 for changes between frames")
    return (videos.float().clamp(-1, 1) / 2).diff(dim=2)
