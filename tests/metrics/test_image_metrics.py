from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hiergen.data.images.digits import load_digits
from hiergen.data.images.pixels import to_uint8
from hiergen.metrics.classifiers import LabelClassifier, train_feature_network
from hiergen.metrics.codebook import codebook_use, codebook_use_by_level
from hiergen.metrics.fidelity import (
    FeatureExtractor,
    compare_image_sets,
    kernel_distance,
    kernel_distance_by_block,
    paired_kernel_distance,
)
from hiergen.metrics.pixel import MS_SSIM_WEIGHTS, ms_ssim, psnr, ssim
from hiergen.pyramid import LevelSpec, TokenPyramid


def test_psnr_by_hand_and_against_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    a, b = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 3, 8, 8) * 2 - 1
    expected = [peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2) for x, y in zip(a, b, strict=True)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-5)
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).item() == pytest.approx(20.0, abs=1e-4)
    assert math.isinf(psnr(a, a)[0])


def _noisy(size: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    base = torch.nn.functional.interpolate(
        torch.rand(2, 3, size // 8, size // 8, generator=rng), size=(size, size), mode="bilinear"
    )
    return (base * 2 - 1), (base * 2 - 1 + 0.2 * torch.randn(base.shape, generator=rng)).clamp(-1, 1)


def test_ssim_against_scikit_image() -> None:
    from skimage.metrics import structural_similarity

    a, b = _noisy(40)
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 1.0,
        "channel_axis": 0,
    }
    pairs = [((x.double() + 1).numpy() / 2, (y.double() + 1).numpy() / 2) for x, y in zip(a, b, strict=True)]
    expected = [structural_similarity(x, y, **options) for x, y in pairs]
    assert ssim(a.double(), b.double()).tolist() == pytest.approx(expected, abs=1e-9)
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match=r"SSIM needs images of at least 11 x 11 pixels, got \(8, 8\)"):
        ssim(a[..., :8, :8], b[..., :8, :8])


def test_ms_ssim_against_a_transcription_in_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    def one_channel(x: np.ndarray, y: np.ndarray) -> float:
        result = 1.0
        for scale, weight in enumerate(MS_SSIM_WEIGHTS):
            mx, my = blur(x), blur(y)
            cs = (2 * (blur(x * y) - mx * my) + 9e-4) / (blur(x * x) - mx**2 + blur(y * y) - my**2 + 9e-4)
            term = cs * (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4) if scale == 4 else cs
            result *= max(term.mean(), 0.0) ** weight
            half = (x.shape[0] // 2, x.shape[1] // 2)
            x, y = (z[: 2 * half[0], : 2 * half[1]].reshape(half[0], 2, half[1], 2).mean((1, 3)) for z in (x, y))
        return result

    a, b = _noisy(184)
    expected = [
        np.mean([one_channel((x[c].double().numpy() + 1) / 2, (y[c].double().numpy() + 1) / 2) for c in range(3)])
        for x, y in zip(a, b, strict=True)
    ]
    assert ms_ssim(a.double(), b.double()).tolist() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="MS-SSIM needs images of at least 176 x 176 pixels"):
        ms_ssim(a[..., :175, :175], b[..., :175, :175])


def test_codebook_use_by_hand() -> None:
    use = codebook_use(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), 16)
    assert (use.used, use.perplexity, use.entropy_bits, use.num_ids) == (0.25, 4.0, 2.0, 8)
    specs = (LevelSpec(1, None, 4, 8), LevelSpec(2, None, 4, 8))
    pyramid = TokenPyramid((torch.zeros(4, 1, dtype=torch.int64), torch.arange(8).reshape(4, 2)), specs)
    assert [u.perplexity for u in codebook_use_by_level(pyramid)] == [1.0, 8.0]
    with pytest.raises(ValueError, match="at least one id"):
        codebook_use(torch.zeros(0, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="level 0 is continuous"):
        codebook_use_by_level(TokenPyramid((torch.zeros(1, 1, 2),), (LevelSpec(1, None, 2),)))


class _Flatten(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def test_frechet_distance_against_the_closed_form_and_any_batch_size() -> None:
    """Features are the mean colors: the distance of two Gaussians by SciPy's matrix root."""
    from scipy.linalg import sqrtm

    rng = torch.Generator().manual_seed(0)
    a = torch.randint(0, 200, (64, 3, 4, 4), generator=rng, dtype=torch.uint8)
    b = torch.randint(50, 256, (80, 3, 4, 4), generator=rng, dtype=torch.uint8)
    extractor = FeatureExtractor("mean-color", "mean of each channel", _Flatten())
    values = compare_image_sets(a, b, extractor, batch_size=7)
    x, y = (s.double().mean(dim=(2, 3)).numpy() for s in (a, b))
    root = sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert values["frechet_distance"] == pytest.approx(expected, rel=1e-4)
    assert compare_image_sets(a, b, extractor, batch_size=64) == pytest.approx(values, rel=1e-4)
    with pytest.raises(ValueError, match="images holds 9 images, at least 10"):
        compare_image_sets(a[:9], b, extractor)


def test_the_judges_recognize_digits_and_are_deterministic() -> None:
    train, test = load_digits("train"), load_digits("test")
    real, held_out = to_uint8(train.images), to_uint8(test.images)
    assert LabelClassifier(real, train.labels).accuracy(held_out, test.labels) > 0.95
    first = train_feature_network(real[:256], train.labels[:256], epochs=1)
    second = train_feature_network(real[:256], train.labels[:256], epochs=1)
    assert torch.equal(first(held_out[:8]), second(held_out[:8]))
    assert first(held_out[:8]).shape == (8, 32)


def test_kernel_distance_by_block_against_torch_fidelity() -> None:
    """One block is the kernel distance of whole sets; the mean over many of one distribution is zero within its error."""
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 5, generator=rng), torch.randn(60, 5, generator=rng) * 1.5
    whole = kernel_distance_by_block(a, b, num_blocks=1, is_paired=False)
    assert float(whole[0]) == pytest.approx(kernel_distance(a, b)["kernel_distance"], rel=1e-4)
    many = kernel_distance_by_block(
        torch.randn(4000, 5, generator=rng), torch.randn(4000, 5, generator=rng), num_blocks=40, is_paired=False
    )
    assert abs(float(many.mean())) < 4 * float(many.std()) / 40**0.5
    # Pairs stay together: a set against itself is at zero in every block.
    assert kernel_distance_by_block(a, a, num_blocks=3, is_paired=True).tolist() == pytest.approx([0] * 3, abs=1e-9)
    with pytest.raises(ValueError, match="40 blocks of 60 and 60 images: a block needs at least 2"):
        kernel_distance_by_block(a, b, num_blocks=40, is_paired=False)


def test_the_kernel_distance_of_pairs_is_unbiased() -> None:
    """Of sets of one distribution that go in pairs: zero within its error, where the estimate for independent sets is below zero."""
    rng = torch.Generator().manual_seed(0)
    naive, paired = [], []
    for _ in range(200):
        a = torch.randn(20, 4, generator=rng)
        b = 0.8 * a + 0.6 * torch.randn(20, 4, generator=rng)
        naive.append(kernel_distance(a, b)["kernel_distance"])
        paired.append(paired_kernel_distance(a, b))
    error = float(np.std(paired)) / 200**0.5
    assert abs(float(np.mean(paired))) < 4 * error
    assert float(np.mean(naive)) < -4 * error
    # Subsets are the same images of both sets; with subsets of everything there is one.
    wide, other = torch.randn(120, 4, generator=rng), torch.randn(120, 4, generator=rng) + 0.5
    assert paired_kernel_distance(wide, wide, subset_size=20) == pytest.approx(0, abs=1e-9)
    whole = paired_kernel_distance(wide, other)
    assert paired_kernel_distance(wide, other, subset_size=60) == pytest.approx(whole, rel=0.2)
