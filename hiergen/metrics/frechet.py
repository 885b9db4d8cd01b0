"""The Fréchet distance between two sets of features, from the features or from their moments, and what resampling does to it.

Letters: `n m` features of two sets, `d` channels of a feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hiergen.seeding import make_rng


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, float64.

    Attributes:
        mean: Mean of the features.
        covariance: Covariance with n - 1 in its denominator, as `numpy.cov` and the field's statistics files have it.
        count: Number of features; 0 where a file does not say it.
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


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the Fréchet distance of two normal distributions: |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^1/2), in float64.

    The trace of the root is the sum of the roots of the eigenvalues of C_1 C_2, as torch-fidelity has it. Rounding can leave a tiny
    negative number where the distributions agree.

    Raises:
        ValueError: If they have different numbers of channels.

    Source:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, arXiv:1706.08500.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"features have {len(first.mean)} channels, the reference's have {len(second.mean)}: they come from another extractor"
        )
    difference = first.mean - second.mean
    # Rounding leaves eigenvalues that should be zero slightly negative or complex; only real parts of their roots count.
    roots = np.sqrt(np.linalg.eigvals(first.covariance @ second.covariance).astype(np.complex128)).real
    return float(difference @ difference + np.trace(first.covariance) + np.trace(second.covariance) - 2 * roots.sum())


class FrechetResampler:
    """The Fréchet distance of many resamples of one set of features to a fixed reference, without a matrix root for each.

    Args:
        features: Features of the set that is resampled.
        reference: Moments that they are compared with.
        device: Device on which to compute, in float64.
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
        first: Features of one set.
        second: Features of the other; row k belongs to row k of the first.
        device: Device on which to compute, in float64.
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


def frechet_beside_halves(
    sets: Mapping[str, Shaped[Tensor, "n d"]],
    real: Shaped[Tensor, "m d"],
    *,
    count: int,
    seed: int,
    repeats: int = 3,
) -> dict[str, tuple[float, float]]:
    """Return the distance of some sets to a random half of real features, beside that of the other half ("other half").

    All are measured by `count` features of each, so that what is due to their number is the same for all.

    Args:
        sets: Features of each set by its name.
        real: Real features, which are cut into two halves anew each time.
        count: Number of features that are drawn of each set and of the other half, without repeats.
        seed: Seed of all draws.
        repeats: Number of times, at least 2.

    Returns:
        Mean and standard deviation over the times, by name of the set.

    Raises:
        ValueError: If a set or half of the real features holds fewer than `count`, or there are fewer than two times.
    """
    half = len(real) // 2
    sizes = {"other half": half, **{name: len(features) for name, features in sets.items()}}
    short = {name: size for name, size in sizes.items() if size < count}
    if short or count < 2 or repeats < 2:
        raise ValueError(
            f"count is {count} and repeats is {repeats}, expected at least 2 of both; of the sets {sizes} none may be smaller than count"
        )
    rng = make_rng(seed, "beside-halves")
    found: dict[str, list[float]] = {name: [] for name in sizes}
    for _ in range(repeats):
        order = torch.randperm(len(real), generator=rng)
        reference = Moments.of(real[order[:half]])
        for name, features in {"other half": real[order[half : 2 * half]], **sets}.items():
            drawn = torch.randperm(len(features), generator=rng)[:count]
            found[name].append(FrechetResampler(features, reference)(drawn.numpy()))
    return {name: (float(np.mean(values)), float(np.std(values, ddof=1))) for name, values in found.items()}


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
