from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from hiergen.metrics.frechet import (
    FrechetResampler,
    Moments,
    MomentSum,
    PairedFrechetResampler,
    frechet_beside_halves,
    frechet_by_count,
    frechet_distance,
)


def test_frechet_distance_agrees_with_the_matrix_root() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)) + 0.5
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(scipy.linalg.sqrtm(first @ second))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(_moments(a), _moments(b)) == pytest.approx(expected)
    assert frechet_distance(_moments(a), _moments(a)) == pytest.approx(0, abs=1e-9)
    # Fewer features than dimensions: covariances are singular.
    few = rng.normal(size=(3, 5))
    assert frechet_distance(_moments(few), _moments(few + 1)) == pytest.approx(5)
    with pytest.raises(ValueError, match=r"features have 5 channels, the reference's have 4"):
        frechet_distance(_moments(a), _moments(b[:, :4]))
    with pytest.raises(ValueError, match="got 1 features, a covariance needs at least 2"):
        _moments(a[:1])


def test_frechet_distance_is_torch_fidelitys_to_the_last_bit() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    for count in (4, 50):
        a, b = _normal(count, 0.0, 1.0), _normal(60, 0.3, 1.5, seed=1)
        moments = Moments.of(a), Moments.of(b)
        pair = [{"mu": m.mean, "sigma": m.covariance} for m in moments]
        wanted = fidelity.fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
        assert frechet_distance(*moments) == wanted


def _moments(features: np.ndarray) -> Moments:
    return Moments.of(torch.from_numpy(features))


def _normal(count: int, mean: float, scale: float, *, dim: int = 6, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=rng, dtype=torch.float64) * scale + mean


def test_many_samples_of_known_gaussians_have_the_closed_form_distance() -> None:
    """Isotropic normals: d (mu_1 - mu_2)^2 + d (sigma_1 - sigma_2)^2."""
    first, second = Moments.of(_normal(40_000, 0.0, 1.0)), Moments.of(_normal(40_000, 0.5, 2.0, seed=1))
    assert frechet_distance(first, second) == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.02)
    exact = [Moments(np.full(6, mean), np.eye(6) * scale**2, 0) for mean, scale in ((0.0, 1.0), (0.5, 2.0))]
    assert frechet_distance(*exact) == pytest.approx(7.5, rel=1e-12)


def test_a_resampler_gives_the_same_number() -> None:
    a, b = _normal(50, 0.0, 1.0), _normal(70, 0.3, 1.5, seed=1)
    wanted = frechet_distance(Moments.of(a), Moments.of(b))
    resampler = FrechetResampler(a, Moments.of(b))
    assert resampler(np.arange(50)) == pytest.approx(wanted, rel=1e-8)
    # Repeats, and fewer features than channels.
    for chosen in (np.array([3, 3, 7, 9, 11, 30, 31, 32]), np.array([1, 5, 8])):
        assert resampler(chosen) == pytest.approx(frechet_distance(Moments.of(a[chosen]), Moments.of(b)), rel=1e-6)


def test_pairs_that_are_resampled_have_the_distance_of_the_pairs_written_out() -> None:
    """With repeats, with fewer rows than channels, and with a channel that is constant, whose covariance has no Cholesky factor."""
    a = _normal(40, 0.0, 1.0)
    b = a + _normal(40, 0.2, 0.5, seed=1)
    flat = a.clone()
    flat[:, 2] = 3.0
    for first, second in ((a, b), (flat, b), (b, flat)):
        resampler = PairedFrechetResampler(first, second)
        for chosen in (np.arange(40), np.repeat(np.arange(0, 40, 3), 3), np.array([4, 4, 9, 1])):
            wanted = frechet_distance(Moments.of(first[chosen]), Moments.of(second[chosen]))
            assert resampler(chosen) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_moments_of_parts_are_those_of_the_whole_however_far_from_zero() -> None:
    features = _normal(101, 1e6, 1.0).float()
    total = MomentSum(6)
    for part in features.split(17):
        total.add(part)
    moments = total.moments()
    assert moments.count == 101
    np.testing.assert_allclose(moments.mean, features.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        moments.covariance, np.cov(features.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9
    )
    with pytest.raises(ValueError, match="got 1 features, a covariance needs at least 2"):
        Moments.of(features[:1])
    with pytest.raises(ValueError, match="features are not finite"):
        Moments.of(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match="features have 6 channels, the reference's have 5"):
        frechet_distance(moments, Moments(np.zeros(5), np.eye(5), 0))


def test_small_samples_look_worse_than_they_are() -> None:
    """Samples of the reference itself: the distance is all bias, and halves about as the number doubles."""
    reference = Moments(np.zeros(6), np.eye(6), 0)
    counts = (50, 100, 200, 400)
    found = frechet_by_count(_normal(400, 0.0, 1.0), reference, counts=counts, seed=0, repeats=20)
    assert [count for count, _ in found] == list(counts)
    values = [value for _, value in found]
    assert values[0] > 1.5 * values[1] > 1.5 * 1.5 * values[2]
    # To first order the bias is d/n for the mean and d (d + 1) / (4 n) for the covariance.
    expected = (6 + 6 * 7 / 4) / 50
    assert values[0] == pytest.approx(expected, rel=0.35)


def test_sets_beside_the_other_half_of_real_features() -> None:
    """A draw of the same features is as far as the other half, a shifted one by the square of its shift further; all of equal count."""
    rng = torch.Generator().manual_seed(0)
    real, same = torch.randn(400, 3, generator=rng), torch.randn(150, 3, generator=rng)
    found = frechet_beside_halves({"same": same, "shifted": same + 2}, real, count=100, seed=0, repeats=8)
    assert found["same"][0] == pytest.approx(found["other half"][0], abs=0.05)
    assert found["shifted"][0] == pytest.approx(12, abs=1.5)
    assert all(deviation > 0 for _, deviation in found.values())
    # The other half has no sample of this one: with all of both it is the distance of two disjoint sets.
    whole = frechet_beside_halves({}, real[:20], count=10, seed=0)
    assert whole["other half"][0] > 0.05
    for count, repeats in ((151, 3), (1, 3), (100, 1)):
        with pytest.raises(
            ValueError,
            match=rf"count is {count} and repeats is {repeats}, expected at least 2 of both; of .*'same': 150",
        ):
            frechet_beside_halves({"same": same}, real, count=count, seed=0, repeats=repeats)
