"""From the stored parts of a pass over reconstructions to the entries of its report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hiergen.evaluation.features.distances import bias_curve, measure
from hiergen.evaluation.features.extractors import Extractor
from hiergen.evaluation.features.references import Reference
from hiergen.evaluation.images.pair_metrics import pair_metric_names
from hiergen.evaluation.images.rate_distortion import rate_row
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.settings import DistanceConfig
from hiergen.metrics.codebook import codebook_use, codebook_use_by_level
from hiergen.metrics.latents import channel_statistics, interpolation_detour, neighbor_spread, spatial_autocorrelation
from hiergen.pipelines.prefixes import Prefix
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a report of reconstructions is made of.

    Attributes:
        metrics: Metrics of the whole, by name.
        warnings: Sentences that a reader of the metrics must know.
        entries: Further entries of the report, as JSON values.
        values: What confidence intervals are computed from, one row per image.
        reference: What the set was compared with.
        pictures: Rows of uint8 images to show, by caption.
    """

    metrics: dict[str, float]
    warnings: list[str]
    entries: dict[str, Any]
    values: dict[str, Tensor]
    reference: Reference
    pictures: dict[str, Tensor]


def summarize(
    parts: Parts,
    prefixes: list[Prefix],
    tokenizer: Tokenizer,
    extractor: Extractor,
    lpips: Callable[[Tensor, Tensor], Tensor] | None,
    config: DistanceConfig,
    *,
    reference: Reference,
) -> Scores:
    """Return the scores of all prefixes; the last one is the whole, whose metrics are the report's."""
    names = parts.names()
    rows: list[dict[str, Any]] = []
    for prefix in prefixes:
        features = {
            kind: parts.read(f"{prefix.count}.{kind}")
            for kind in ("pool", "spatial", "logits")
            if f"{prefix.count}.{kind}" in names
        }
        found = measure(features, reference, extractor, config, is_paired=not reference.about)
        pixel = {k: parts.read(f"{prefix.count}.{k}") for k in pair_metric_names() if f"{prefix.count}.{k}" in names}
        means = {kind: float(value.double().mean()) for kind, value in pixel.items()}
        rows.append(rate_row(prefix, {**_renamed(found.metrics), **means}, pixel if config.resamples else {}))
    last = prefixes[-1].count
    values = {
        kind: parts.read(f"{last}.{kind}") for kind in (*pair_metric_names(), "pool") if f"{last}.{kind}" in names
    }
    if not reference.about:
        values["reference_pool"] = parts.read("reference.pool")
    pictures = {"input": parts.read("shown.input")}
    for prefix in prefixes:
        pictures[prefix.caption] = parts.read(f"shown.{prefix.count}")
    tokens = tuple(parts.read(f"tokens.{level}") for level in range(len(tokenizer.specs)))
    entries = {
        "rate_distortion": rows,
        # Parts of the reconstructions against all of the images they were rebuilt from would answer no question.
        "bias": bias_curve(values["pool"], reference, config) if reference.about else [],
        "tokens": describe_tokens(TokenPyramid(tokens, tokenizer.specs), tokenizer, lpips),
        "intervals_95": found.half_widths,
    }
    return Scores(rows[-1]["metrics"], found.warnings, entries, values, reference, pictures)


def describe_tokens(
    pyramid: TokenPyramid, tokenizer: Tokenizer[Any], lpips: Callable[[Tensor, Tensor], Tensor] | None
) -> dict[str, Any]:
    """Return the use of the codebook of discrete tokens, or the diagnostics of continuous ones, as JSON values."""
    vocab_size = pyramid.specs[0].vocab_size
    if vocab_size is not None:
        return {
            "kind": "discrete",
            "images": pyramid.batch_size,
            "all_levels": dataclasses.asdict(
                codebook_use(torch.cat([ids.flatten() for ids in pyramid.levels]), vocab_size)
            ),
            "by_level": [dataclasses.asdict(use) for use in codebook_use_by_level(pyramid)],
        }
    found: dict[str, Any] = {
        "kind": "continuous",
        "images": pyramid.batch_size,
        "by_channel": [dataclasses.asdict(channel) for channel in channel_statistics(pyramid)],
    }
    copies = pyramid.concat().unique(dim=0, return_counts=True)[1]
    if pyramid.batch_size > 5 and int(copies.max()) <= 5:
        found["neighbor_spread"] = neighbor_spread(pyramid)
    grid, finest = pyramid.specs[-1].grid, pyramid.levels[-1]
    if grid is not None and len(grid) == 2 and min(grid) >= 2 and bool((finest != finest[:1, :1]).any()):
        found["spatial_autocorrelation"] = spatial_autocorrelation(pyramid)
    pairs = min(16, pyramid.batch_size // 2)
    if lpips is not None and pairs:
        ends = (pyramid[:pairs].to(tokenizer.device), pyramid[pairs : 2 * pairs].to(tokenizer.device))
        detour = interpolation_detour(lambda p: tokenizer.decode(p).clamp(-1, 1), lpips, *ends)
        found["interpolation_detour"] = float(detour.mean())
    return found


def _renamed(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics with FID called rFID, as reconstructions have it."""
    return {f"r{name}" if name.startswith(("FID", "FD")) else name: value for name, value in metrics.items()}
