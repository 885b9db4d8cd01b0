"""The Fréchet distance between two sets of features, from the features or from their moments, and what resampling does to it.

Letters: `n m` features of two sets, `d` channels of a feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hiergen.environment import require


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, float64.

    Attributes:
        mean: Mean.
        covariance: Covariance with n - 1 in its denominator, as `numpy.cov` and the field's statistics files have it.
        count: Number of features; 0 where a file does not say.
    """

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]
    count: int

    @classmethod
    def of(cls, features: Shaped[Tensor, "n d"]) -> Moments:
        """Return the moments of features."""
        total = MomentSum(features.shape[1])
        total.add(features)
        return total.moments()


class MomentSum:
    """Moments of features that come in parts and need not fit in memory together.

    Sums are about the mean of the first part, in float64, so that no digits are lost where the mean is large.
    """

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, features: Shaped[Tensor, "n d"]) -> None:
        """Count some features in."""
        wide = features.double().cpu()
        if self._shift is None:
            self._shift = wide.mean(dim=0)
        wide = wide - self._shift
        self._count += len(wide)
        self._sum += wide.sum(dim=0)
        self._products += wide.T @ wide

    def moments(self) -> Moments:
        """Return the moments of everything added.

        Raises:
            ValueError: If fewer than two features were added, or any was not finite.
        """
        if self._count < 2 or self._shift is None:
            raise ValueError(f"got {self._count} features, a covariance needs at least 2")
        if not bool(self._products.diagonal().isfinite().all()):
            raise ValueError("features are not finite: an image or the extractor's weights hold NaN or infinity")
        mean = self._sum / self._count
        covariance = (self._products - self._count * torch.outer(mean, mean)) / (self._count - 1)
        return Moments((mean + self._shift).numpy(), covariance.numpy(), self._count)


def frechet_from_moments(first: Moments, second: Moments) -> float:
    """Return the Fréchet distance of two normal distributions, as torch-fidelity computes it.

    Raises:
        ValueError: If they have different numbers of channels.
        ImportError: If torch-fidelity is not installed.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features have {len(first.mean)} channels, the reference's have {len(second.mean)}: they come from another extractor"
        )
    fid = require("torch_fidelity.metric_fid", "eval", "a Fréchet distance")
    pair = [{"mu": moments.mean, "sigma": moments.covariance} for moments in (first, second)]
    return float(fid.fid_statistics_to_metric(*pair, verbose=False)[fid.KEY_METRIC_FID])


def frechet_distance(features: Shaped[np.ndarray, "n d"], reference: Shaped[np.ndarray, "m d2"]) -> float:
    """Return the Fréchet distance between the normal distributions with the mean and covariance of two sets of features.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^1/2), in float64. With X and Y the centered features, the last trace is the sum of
    the singular values of X Y^T over sqrt((n - 1)(m - 1)); with more features than channels X and Y are first replaced by roots of
    their covariances, which are as small as the channels.

    Raises:
        ValueError: If a set holds fewer than two features, or features of another length or not finite.
    """
    sets = [np.asarray(value, np.float64) for value in (features, reference)]
    for value in sets:
        if len(value) < 2 or value.shape[1] != sets[0].shape[1] or not np.isfinite(value).all():
            raise ValueError(
                f"features have shapes {sets[0].shape} and {sets[1].shape}, expected (n, d) finite ones, n > 1"
            )
    difference = sets[0].mean(axis=0) - sets[1].mean(axis=0)
    centered = [(value - value.mean(axis=0)) / np.sqrt(len(value) - 1) for value in sets]
    traces = sum(float(np.square(value).sum()) for value in centered)
    first, second = (_root(value.T @ value).T if len(value) > value.shape[1] else value for value in centered)
    cross = float(np.linalg.svd(first @ second.T, compute_uv=False).sum())
    # Rounding can leave a tiny negative number where the sets agree.
    return max(0.0, float(difference @ difference) + traces - 2 * cross)


class FrechetResampler:
    """The Fréchet distance of many resamples of one set of features to a fixed reference, without a matrix root for each.

    Args:
        features: The set that is resampled.
        reference: What it is compared with.
        device: Where to compute, in float64.
    """

    def __init__(
        self, features: Shaped[Tensor, "n d"], reference: Moments, *, device: torch.device | str = "cpu"
    ) -> None:
        self._features = features.to(device, torch.float64)
        self._projected = self._features @ torch.from_numpy(_root(reference.covariance)).to(device)
        self._mean = torch.from_numpy(reference.mean).to(device)
        self._trace = float(np.trace(reference.covariance))

    def __call__(self, indices: Int[np.ndarray, " k"]) -> float:
        """Return the distance of the features at some indices, which may repeat."""
        places, weights = _weights(indices, self._features.device)
        mean, centered = _centered(self._features[places], weights)
        _, projected = _centered(self._projected[places], weights)
        gram = projected @ projected.T if len(places) < projected.shape[1] else projected.T @ projected
        difference = mean - self._mean
        constant = difference @ difference + centered.square().sum() + self._trace
        return max(0.0, float(constant - 2 * _trace_of_root(gram)))


class PairedFrechetResampler:
    """The Fréchet distance of two sets of features that are resampled together, row by row.

    Args:
        first: One set.
        second: The other; row k belongs to row k of the first.
        device: Where to compute, in float64.
    """

    def __init__(
        self, first: Shaped[Tensor, "n d"], second: Shaped[Tensor, "n d"], *, device: torch.device | str = "cpu"
    ) -> None:
        self._sets = [features.to(device, torch.float64) for features in (first, second)]

    def __call__(self, indices: Int[np.ndarray, " k"]) -> float:
        """Return the distance of both sets at some indices, which may repeat."""
        places, weights = _weights(indices, self._sets[0].device)
        (mean, first), (other, second) = (_centered(features[places], weights) for features in self._sets)
        if len(places) < first.shape[1]:
            cross = torch.linalg.svdvals(first @ second.T).sum()
        else:
            # With L L^T = C_1, the eigenvalues of L^T C_2 L are those of C_1 C_2.
            lower, failed = torch.linalg.cholesky_ex(first.T @ first)
            if int(failed):
                lower = torch.from_numpy(_root((first.T @ first).cpu().numpy())).to(first.device)
            half = second @ lower
            cross = _trace_of_root(half.T @ half)
        traces = first.square().sum() + second.square().sum()
        return max(0.0, float((mean - other).square().sum() + traces - 2 * cross))


def frechet_by_count(
    features: Shaped[Tensor, "n d"], reference: Moments, *, counts: Sequence[int], seed: int, repeats: int = 5
) -> list[tuple[int, float]]:
    """Return (count, distance) of random subsets: how much of the distance is due to the number of samples.

    The expected distance of n samples is about that of infinitely many plus a constant over n.

    Source:
        Effectively Unbiased FID and Inception Score and Where to Find Them, arXiv:1911.07023.
    """
    resampler = FrechetResampler(features, reference)
    rng = np.random.default_rng(seed)
    found = []
    for count in counts:
        rounds = 1 if count == len(features) else repeats
        drawn = [resampler(rng.permutation(len(features))[:count]) for _ in range(rounds)]
        found.append((count, float(np.mean(drawn))))
    return found


def _weights(indices: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the different indices of a resample and how often each was drawn: two thirds of the rows carry all of it."""
    places, counts = np.unique(indices, return_counts=True)
    return torch.from_numpy(places).to(device), torch.from_numpy(counts).to(device, torch.float64)[:, None]


def _centered(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of weighted rows, and X with X^T X their covariance."""
    total = weights.sum()
    mean = (rows * weights).sum(dim=0) / total
    return mean, (rows - mean) * (weights / (total - 1)).sqrt()


def _trace_of_root(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt().sum()


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return R with R R^T = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(min=0))
