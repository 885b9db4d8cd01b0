from __future__ import annotations

import math
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import correlate1d
from torch import Tensor

from hiergen.metrics.video import (
    VideoExtractor,
    compare_videos,
    flicker_error,
    frame_distance,
    frame_psnr,
    frame_ssim,
    frechet_video_distance,
    temporal_flicker,
)
from hiergen.pretrained.perceptual import LPIPS


def pair() -> tuple[Tensor, Tensor]:
    reference = torch.rand(2, 3, 4, 16, 16) * 2 - 1
    return (reference + 0.2 * torch.randn_like(reference)).clamp(-1, 1), reference


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel in [0, 1] by its formula, over windows that lie inside the image."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, window, axis=0), window, axis=1)[5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_psnr_and_ssim_are_their_formulas_frame_by_frame() -> None:
    videos, reference = pair()
    psnr, ssim = frame_psnr(videos, reference), frame_ssim(videos, reference)
    assert psnr.shape == ssim.shape == (2, 4)
    a, b = (((x + 1) / 2).double().numpy()[1, :, 2] for x in (videos, reference))
    assert float(psnr[1, 2]) == pytest.approx(10 * math.log10(1 / np.mean((a - b) ** 2)), rel=1e-5)
    assert float(ssim[1, 2]) == pytest.approx(np.mean([plain_ssim(x, y) for x, y in zip(a, b, strict=True)]), rel=1e-4)
    assert frame_psnr(reference, reference).tolist() == [[100.0] * 4] * 2
    torch.testing.assert_close(frame_ssim(reference, reference), torch.ones(2, 4))


def test_flicker_by_hand() -> None:
    still = torch.zeros(1, 3, 3, 2, 2)
    blinking = still.clone()
    blinking[:, :, 1] = 0.5
    assert temporal_flicker(still).tolist() == [0.0]
    # 0.5 of a range of 2 is a quarter, at both changes.
    assert temporal_flicker(blinking).tolist() == [0.25]
    assert flicker_error(blinking, still).tolist() == [0.25]
    assert flicker_error(blinking + 0.25, blinking).tolist() == [0.0]
    moving = torch.linspace(-1, 1, 3)[None, None, :, None, None].expand(1, 3, 3, 2, 2)
    assert temporal_flicker(moving).tolist() == [0.5]
    assert flicker_error(moving, still).tolist() == [0.5]
    with pytest.raises(ValueError, match="videos have 1 frame, expected at least 2"):
        temporal_flicker(still[:, :, :1])


def test_comparison_is_the_mean_over_frames_and_takes_a_perceptual_distance() -> None:
    videos, reference = (x.repeat(1, 1, 1, 4, 4) for x in pair())
    torch.manual_seed(0)
    lpips = LPIPS("squeeze")
    scores = compare_videos(videos, reference, lpips=lpips)
    assert set(scores) == {"psnr_db", "ssim", "flicker", "flicker_error", "lpips"}
    assert scores["psnr_db"] == pytest.approx(float(frame_psnr(videos, reference).mean()))
    by_frame = frame_distance(videos, reference, lpips, batch_size=3)
    alone = lpips(videos[1, :, 2][None], reference[1, :, 2][None])
    assert float(by_frame[1, 2]) == pytest.approx(float(alone), rel=1e-4)
    assert scores["lpips"] == pytest.approx(float(by_frame.mean()), rel=1e-5)
    assert "lpips" not in compare_videos(videos, reference)


def test_shapes_that_differ_are_refused(monkeypatch) -> None:
    # The type checker of test runs would speak before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    videos, reference = pair()
    with pytest.raises(ValueError, match=r"videos have shape \(1, 3, 4, 16, 16\), the reference \(2, 3, 4, 16, 16\)"):
        compare_videos(videos[:1], reference)


def colors(videos: Tensor) -> Tensor:
    """Features that anybody can compute: the mean of each channel, and of its last frame."""
    values = videos.double() / 255
    return torch.cat([values.mean(dim=(2, 3, 4)), values[:, :, -1].mean(dim=(2, 3))], dim=1)


def test_frechet_distance_is_that_of_the_features_and_carries_its_extractor() -> None:
    videos, reference = torch.rand(9, 3, 2, 4, 4) * 2 - 1, torch.rand(12, 3, 2, 4, 4) * 1.5 - 1
    extractor = VideoExtractor("colors", "channel means", colors)
    found = frechet_video_distance(videos, reference, extractor, batch_size=4)
    a, b = (colors(((x + 1) * 127.5).round().to(torch.uint8)).numpy() for x in (videos, reference))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert found.distance == pytest.approx(wanted, rel=1e-6)
    assert (found.extractor, found.num_videos, found.num_reference) == ("colors", 9, 12)
    assert frechet_video_distance(videos, videos, extractor).distance == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="got 1 features, a covariance needs at least 2"):
        frechet_video_distance(videos[:1], reference, extractor)


def test_a_missing_library_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match=r'SSIM needs scikit-image: pip install "hiergen\[eval\]"'):
        frame_ssim(*pair())
