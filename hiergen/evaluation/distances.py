"""Distances between a set of images and its reference, from stored features, by torch-fidelity's own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hiergen.evaluation.extractors import Extractor
from hiergen.evaluation.protocol import small_sample_warning
from hiergen.evaluation.references import Reference
from hiergen.metrics.frechet import Moments, frechet_by_count, frechet_from_moments


@dataclasses.dataclass(frozen=True)
class DistanceConfig:
    """How distances are computed from features.

    Attributes:
        kid_subset_size: Images of each subset of the kernel distance; fewer where a set is smaller.
        neighborhood: Nearest neighbors that span a ball for precision and recall.
        splits: Splits of the Inception score.
        resamples: Bootstrap draws of each confidence interval; 0 leaves intervals out.
        seed: Of subsets, splits and draws.
    """

    kid_subset_size: int = 1000
    neighborhood: int = 3
    splits: int = 10
    resamples: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("kid_subset_size", 2), ("neighborhood", 1), ("splits", 1), ("resamples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")


def measure(
    features: dict[str, Tensor], reference: Reference, extractor: Extractor, config: DistanceConfig
) -> tuple[dict[str, float], list[str]]:
    """Return the distances of a set to its reference and what to be warned of.

    Args:
        features: "pool" `(n, d)`, and "spatial" and "logits" where the extractor has them.
        reference: What to compare with. Kernel distance, precision and recall need its features.
        extractor: Gives the Fréchet distance its name.
        config: Sizes and seed.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    pool = features["pool"].float()
    moments = Moments.of(pool)
    found = {extractor.distance: frechet_from_moments(moments, reference.pool)}
    if "spatial" in features and reference.spatial is not None:
        found["sFID"] = frechet_from_moments(Moments.of(features["spatial"]), reference.spatial)
    options = {"rng_seed": config.seed, "verbose": False, "save_cpu_ram": True, "prc_neighborhood": config.neighborhood}
    warnings = small_sample_warning("the set", len(pool), extractor.dim)
    if reference.features is None:
        warnings.append("the reference file holds no images: no kernel distance, precision or recall")
    else:
        real = reference.features.float()
        warnings += small_sample_warning("the reference", len(real), extractor.dim)
        subset = min(config.kid_subset_size, len(pool), len(real))
        kernel = kid_features_to_metric(pool, real, kid_subset_size=subset, **options)
        found["KID"] = kernel["kernel_inception_distance_mean"]
        found["KID_std"] = kernel["kernel_inception_distance_std"]
        if min(len(pool), len(real)) > config.neighborhood:
            balls = prc_features_to_metric(pool, real, **options)
            found |= {"precision": balls["precision"], "recall": balls["recall"]}
    if "logits" in features:
        splits = min(config.splits, len(pool))
        score = isc_features_to_metric(features["logits"], splits, True, config.seed)
        found |= {"IS": score["inception_score_mean"], "IS_std": score["inception_score_std"]}
    return {name: float(value) for name, value in found.items()}, warnings


def bias_curve(pool: Tensor, reference: Reference, config: DistanceConfig) -> list[dict[str, Any]]:
    """Return the Fréchet distance of an eighth, a quarter, a half and all of the set: what is left of it with more samples."""
    counts = [count for count in (len(pool) // 8, len(pool) // 4, len(pool) // 2, len(pool)) if count >= 10]
    curve = frechet_by_count(pool, reference.pool, counts=counts, seed=config.seed)
    return [{"count": count, "distance": value} for count, value in curve]


def extrapolated(curve: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the distance that a straight line in 1 / count gives for infinitely many samples; None for fewer than two counts."""
    if len(curve) < 2:
        return None
    _, intercept = np.polyfit([1 / point["count"] for point in curve], [point["distance"] for point in curve], 1)
    return float(intercept)
