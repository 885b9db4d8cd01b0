"""Distances between sets of images on a named feature extractor, by torch-fidelity's functions of features.

A figure means something only beside the name of the extractor: FID is the Fréchet distance on InceptionV3's 2048 pool features
and on nothing else. Whatever else is used carries its own name here.

Where features come from: FID's InceptionV3 is `hiergen.evaluation.features.inception`, `build_extractor` of
`hiergen.evaluation.features.extractors` builds it and the others by name, and `register_extractor` there adds one.

Letters: `n m` images of two sets, `d` channels of a feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from hiergen.environment import require
from hiergen.metrics.frechet import Moments, frechet_distance
from hiergen.seeding import make_rng

#: What an extractor returns: "pool" `(b, d)`; where it has them, "spatial" `(b, s)` for sFID and "logits" `(b, k)` for IS.
Features = dict[str, Tensor]

#: With fewer images a covariance is no estimate of one.
MIN_IMAGES = 10


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A feature extractor that is ready to run.

    Attributes:
        name: Name that stands in every report.
        description: What it is and on what it was trained.
        network: Maps uint8 images `(b, 3, h, w)` to pool features `(b, d)`, or to all `Features`.
    """

    name: str
    description: str
    network: Callable[[Tensor], Tensor | Features]

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """Return the features of a batch, on its device."""
        found = self.network(images)
        return {"pool": found} if isinstance(found, Tensor) else found


def check_count(count: int, what: str, unit: str = "images") -> None:
    """Check that there are enough images, or clips, for statistics.

    Raises:
        ValueError: If there are fewer than 10.
    """
    if count < MIN_IMAGES:
        raise ValueError(
            f"{what} holds {count} {unit}, at least {MIN_IMAGES} are needed (and thousands for a figure that means something)"
        )


def compare_image_sets(
    images: UInt8[Tensor, "n 3 h w"],
    reference: UInt8[Tensor, "m 3 h w"],
    extractor: FeatureExtractor,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Return Fréchet distance, kernel distance, precision and recall of one image set against a reference.

    Args:
        images: Images to judge.
        reference: Images that they should resemble.
        extractor: Feature extractor on which distances are measured.
        batch_size: Number of images that the extractor takes at once; the result does not depend on it.
        seed: Seed of the kernel distance's subsets.

    Raises:
        ValueError: If a set holds fewer than 10 images.
        ImportError: If torch-fidelity is not installed.
    """
    for name, value in (("images", images), ("reference", reference)):
        check_count(value.shape[0], name)
    made, real = (
        torch.cat([extractor(part)["pool"].cpu() for part in value.split(batch_size)]) for value in (images, reference)
    )
    found = {"frechet_distance": frechet_distance(Moments.of(made), Moments.of(real))}
    found |= kernel_distance(made, real, seed=seed)
    del found["kernel_distance_std"]
    return {**found, **precision_recall(made, real)}


def kernel_distance(
    features: Shaped[Tensor, "n d"], reference: Shaped[Tensor, "m d"], *, subset_size: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Return "kernel_distance" (KID on Inception's features) and "kernel_distance_std": mean and deviation over 100 random subsets.

    Args:
        features: Features of the set to judge.
        reference: Features of the set it should resemble.
        subset_size: Number of images in a subset; fewer where a set is smaller.
        seed: Seed of the subsets.

    Raises:
        ImportError: If torch-fidelity is not installed.

    Source:
        Demystifying MMD GANs, arXiv:1801.01401: the unbiased estimate with the cubic kernel.
    """
    kid = require("torch_fidelity.metric_kid", "eval", "a kernel distance")
    found = kid.kid_features_to_metric(
        features.float(),
        reference.float(),
        kid_subset_size=min(subset_size, len(features), len(reference)),
        rng_seed=seed,
        verbose=False,
    )
    names = {"kernel_distance": "mean", "kernel_distance_std": "std"}
    return {ours: float(found[f"kernel_inception_distance_{theirs}"]) for ours, theirs in names.items()}


def paired_kernel_distance(
    features: Shaped[Tensor, "n d"], reference: Shaped[Tensor, "n d"], *, subset_size: int = 1000, seed: int = 0
) -> float:
    """Return the kernel distance of a set whose image k was made from image k of the reference, a mean over subsets of both.

    `kernel_distance` assumes that the sets are independent. An image lies close to what it was made from, so its own pair is more
    similar than others and pulls that estimate down, below zero for good reconstructions, by an amount that falls as one over the
    number of images in a subset. Here own pairs are left out, which makes the estimate unbiased for pairs too; sets that agree have
    exactly zero.

    Args:
        features: Features of the set to judge.
        reference: Features of what it was made from, in the same order.
        subset_size: Number of images in a subset, the same ones of both sets; all of them where there are no more, otherwise 100 subsets.
        seed: Seed of the subsets.

    Source:
        The U-statistic of A Kernel Two-Sample Test, JMLR 13 (2012), lemma 6, on the pairs.
    """
    count = len(features)
    if count <= subset_size:
        return _kernel_distance(features, reference, is_paired=True)
    rng = make_rng(seed, "kernel-subsets")
    drawn = (torch.randperm(count, generator=rng)[:subset_size] for _ in range(100))
    values = [_kernel_distance(features[places], reference[places], is_paired=True) for places in drawn]
    return sum(values) / len(values)


def kernel_distance_by_block(
    features: Shaped[Tensor, "n d"],
    reference: Shaped[Tensor, "m d"],
    *,
    num_blocks: int,
    is_paired: bool,
    seed: int = 0,
) -> Float[Tensor, " blocks"]:
    """Return the kernel distance of disjoint random blocks of one set to disjoint random blocks of the other: independent estimates.

    Args:
        features: Features of the set to judge.
        reference: Features of the set it should resemble.
        num_blocks: Number of blocks of each set, of equal size; what is left over is not used.
        is_paired: Image k of the set was made from image k of the reference: they go to the same block, as in `paired_kernel_distance`.
        seed: Seed of the blocks.

    Raises:
        ValueError: If a block would hold fewer than two images.
    """
    size = min(len(features), len(reference)) // num_blocks
    if size < 2:
        raise ValueError(
            f"{num_blocks} blocks of {len(features)} and {len(reference)} images: a block needs at least 2"
        )
    rng = make_rng(seed, "kernel-blocks")
    orders = [torch.randperm(len(part), generator=rng) for part in (features, reference)]
    if is_paired:
        orders[1] = orders[0]
    first, second = (
        part[order[: num_blocks * size]].split(size) for part, order in zip((features, reference), orders, strict=True)
    )
    found = [_kernel_distance(a, b, is_paired=is_paired) for a, b in zip(first, second, strict=True)]
    return torch.tensor(found, dtype=torch.float64)


def _kernel_distance(features: Tensor, reference: Tensor, *, is_paired: bool) -> float:
    """Return the unbiased estimate of two sets of equal size, all of both; of pairs, without their own kernels."""
    first, second = features.double(), reference.double()
    within, across = [], ((first @ second.T) / first.shape[1] + 1).pow(3)
    for part in (first, second):
        kernel = (part @ part.T / part.shape[1] + 1).pow(3)
        within.append((kernel.sum() - kernel.diagonal().sum()) / (len(part) * (len(part) - 1)))
    if is_paired:
        count = len(across)
        return float(within[0] + within[1] - 2 * (across.sum() - across.diagonal().sum()) / (count * (count - 1)))
    return float(within[0] + within[1] - 2 * across.mean())


def precision_recall(
    features: Shaped[Tensor, "n d"], reference: Shaped[Tensor, "m d"], *, neighborhood: int = 3
) -> dict[str, float]:
    """Return "precision" and "recall": shares of one set inside the balls that the nearest neighbors of the other span.

    Args:
        features: Features of the set to judge.
        reference: Features of the set it should resemble.
        neighborhood: Rank of the neighbor that a ball reaches to; both sets must be larger.

    Raises:
        ImportError: If torch-fidelity is not installed.

    Source:
        Improved Precision and Recall Metric for Assessing Generative Models, arXiv:1904.06991.
    """
    prc = require("torch_fidelity.metric_prc", "eval", "precision and recall")
    found = prc.prc_features_to_metric(
        features.float(), reference.float(), prc_neighborhood=neighborhood, save_cpu_ram=True, verbose=False
    )
    return {name: float(found[name]) for name in ("precision", "recall")}
