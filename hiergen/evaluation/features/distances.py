"""Metrics of a set of images against its reference, from stored features: Fréchet and kernel distance, precision, recall, IS.

An entry in `SET_METRICS` is all that a further metric of features takes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hiergen.environment import require
from hiergen.evaluation.features.extractors import Extractor
from hiergen.evaluation.features.references import Reference
from hiergen.evaluation.protocol import small_sample_warning
from hiergen.evaluation.settings import DistanceConfig
from hiergen.metrics.fidelity import (
    kernel_distance,
    kernel_distance_by_block,
    paired_kernel_distance,
    precision_recall,
)
from hiergen.metrics.frechet import Moments, frechet_by_count, frechet_distance
from hiergen.metrics.intervals import NORMAL_95, mean_half_width

#: Number of disjoint blocks of images that the interval of the kernel distance is computed from.
BLOCKS = 10
#: How intervals of metrics that are no mean over images are computed, by the beginning of the metric's name.
INTERVAL_RULES = {
    "rK": f"Student's t over {BLOCKS} disjoint blocks of pairs",
    "K": f"Student's t over {BLOCKS} disjoint blocks of both sets",
    "IS": "Student's t over its splits",
    "agreement": "binomial",
}


def interval_rule(name: str) -> str | None:
    """Return how the interval of a metric is made; None where it is resampled."""
    by_set = (metric.intervals[name] for metric in SET_METRICS if name in metric.intervals)
    by_name = (rule for beginning, rule in INTERVAL_RULES.items() if name.startswith(beginning))
    return next(itertools.chain(by_set, by_name), None)


def shown_name(name: str, extractor: str | None) -> str:
    """Return what a report calls a metric: one of features that has a plain name says whose features they are.

    Args:
        name: Name of the metric.
        extractor: Name of the extractor; None or "none" for no features.
    """
    if extractor in (None, "none"):
        return name
    if name == "agreement":
        return f"{name} ({extractor} classifier)"
    return f"{name} ({extractor} features)" if any(name in metric.intervals for metric in SET_METRICS) else name


def kernel_name(distance: str) -> str:
    """Return what the kernel distance is called where the Fréchet distance has some name: KID is on Inception's features alone."""
    if distance.startswith("FID"):
        return f"K{distance[1:]}"
    return f"KD-{distance.removeprefix('FD-')}"


def score_name(distance: str) -> str:
    """Return what the score of the logits is called: IS is on Inception's alone."""
    return "IS" if distance == "FID" else f"IS-{distance.removeprefix('FID-').removeprefix('FD-')}"


@dataclasses.dataclass(frozen=True)
class Distances:
    """What `measure` finds.

    Attributes:
        metrics: Values by name.
        half_widths: Half-width of the 95 % interval of each metric that is not a mean over images; `INTERVAL_RULES` says how it is
            computed.
        warnings: Sentences that a reader of the values must know.
    """

    metrics: dict[str, float]
    half_widths: dict[str, float]
    warnings: list[str]


#: Value of a metric, and half of its 95 % interval; None where it has none.
Measured = tuple[float, float | None]


@dataclasses.dataclass(frozen=True)
class SetMetric:
    """A metric of the features of a set and of its reference, or several that are computed together.

    Attributes:
        intervals: For the name of each metric, how its interval is computed; "" where it has none.
        measure: Maps features `(n, d)`, those of the reference `(m, d)` and the config to values by name; a metric that they do not
            allow is left out.
    """

    intervals: dict[str, str]
    measure: Callable[[Tensor, Tensor, DistanceConfig], dict[str, Measured]]


def _balls(pool: Tensor, real: Tensor, config: DistanceConfig) -> dict[str, Measured]:
    """Return precision and recall, where there are more images than neighbors."""
    if min(len(pool), len(real)) <= config.neighborhood:
        return {}
    found = precision_recall(pool, real, neighborhood=config.neighborhood)
    counts = {"precision": len(pool), "recall": len(real)}
    return {
        name: (found[name], NORMAL_95 * math.sqrt(found[name] * (1 - found[name]) / count))
        for name, count in counts.items()
    }


#: Metrics of the features of two sets beside Fréchet and kernel distance; reports call them "NAME (EXTRACTOR features)".
SET_METRICS: list[SetMetric] = [
    SetMetric(
        {
            "precision": "binomial, with the balls of the reference as they are",
            "recall": "binomial over the reference, with the balls of the set as they are",
        },
        _balls,
    ),
]


def measure(
    features: dict[str, Tensor],
    reference: Reference,
    extractor: Extractor,
    config: DistanceConfig,
    *,
    is_paired: bool = False,
) -> Distances:
    """Return the distances of a set to its reference.

    Args:
        features: "pool" `(n, d)`, and "spatial" and "logits" where the extractor has them.
        reference: Statistics to compare with. Kernel distance, precision and recall need its features.
        extractor: Gives the Fréchet distance its name.
        config: Sizes and seed.
        is_paired: Image k of the set was made from image k of the reference: the kernel distance leaves own pairs out, and its name
            says so (rKID).
    """
    pool = features["pool"].float()
    found = {extractor.distance: frechet_distance(Moments.of(pool), reference.pool)}
    if "spatial" in features and reference.spatial is not None:
        found["sFID"] = frechet_distance(Moments.of(features["spatial"]), reference.spatial)
    result = Distances(found, {}, small_sample_warning("the set", len(pool), extractor.dim))
    if reference.features is None:
        result.warnings.append("the reference file holds no images: no kernel distance, precision or recall")
    else:
        real = reference.features.float()
        result.warnings.extend(small_sample_warning("the reference", len(real), extractor.dim))
        _add_kernel_distance(result, pool, real, kernel_name(extractor.distance), config, is_paired)
        for metric in SET_METRICS:
            for name, (value, half) in metric.measure(pool, real, config).items():
                result.metrics[name] = value
                if half is not None:
                    result.half_widths[name] = half
    if "logits" in features:
        _add_score(result, features["logits"], score_name(extractor.distance), config)
    return result


def _add_kernel_distance(
    result: Distances, pool: Tensor, real: Tensor, name: str, config: DistanceConfig, is_paired: bool
) -> None:
    draws = {"subset_size": config.kid_subset_size, "seed": config.seed}
    if is_paired:
        name = f"r{name}"
        result.metrics[name] = paired_kernel_distance(pool, real, **draws)
    else:
        values = kernel_distance(pool, real, **draws)
        result.metrics.update({name: values["kernel_distance"], f"{name}_std": values["kernel_distance_std"]})
    if min(len(pool), len(real)) >= 2 * BLOCKS:
        blocks = kernel_distance_by_block(pool, real, num_blocks=BLOCKS, is_paired=is_paired, seed=config.seed)
        result.half_widths[name] = mean_half_width(float(blocks.std()), BLOCKS)


def _add_score(result: Distances, logits: Tensor, name: str, config: DistanceConfig) -> None:
    """Enter the Inception score, or what it is called on another extractor."""
    splits = min(config.splits, len(logits))
    metric = require("torch_fidelity.metric_isc", "eval", "an Inception score")
    score = metric.isc_features_to_metric(logits, splits, True, config.seed)
    mean, std = (float(score[f"inception_score_{kind}"]) for kind in ("mean", "std"))
    result.metrics.update({name: mean, f"{name}_std": std})
    if splits > 1:
        # torch-fidelity's deviation has the number of splits in its denominator.
        result.half_widths[name] = mean_half_width(std * math.sqrt(splits / (splits - 1)), splits)


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
