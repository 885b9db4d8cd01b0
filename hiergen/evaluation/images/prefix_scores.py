"""Quality against number of levels: reconstructions from every prefix, and generations that stop early."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hiergen.data.images.pixels import to_uint8
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.encoding import decode_batches, encode_batches
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.prefixes import encode_adaptive
from hiergen.seeding import SampleRng
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class PrefixScore:
    """What the first levels are worth.

    Attributes:
        levels: Number of levels that were decoded or generated.
        tokens: Number of tokens of these levels.
        frechet_distance: Fréchet distance on the extractor that was given: of reconstructions to the images themselves (rFID where it is
            InceptionV3's), or of generated images to the reference (gFID).
        psnr_db: Mean PSNR over images, in dB; None for generations.
        seconds: Time to generate and decode all images; None for reconstructions.
    """

    levels: int
    tokens: int
    frechet_distance: float
    psnr_db: float | None = None
    seconds: float | None = None


def score_reconstructions(
    tokenizer: Tokenizer, images: Float[Tensor, "n 3 h w"], extractor: FeatureExtractor, *, batch_size: int = 64
) -> list[PrefixScore]:
    """Return how well images in [-1, 1] are rebuilt from every prefix of levels that the tokenizer decodes.

    Images are encoded once, and one prefix is held in memory at a time.
    """
    pyramid, real = encode_batches(tokenizer, images, batch_size=batch_size), to_uint8(images)
    scores = []
    for levels in tokenizer.decodable_levels:
        prefix = pyramid.prefix(levels)
        rebuilt = decode_batches(tokenizer, prefix, batch_size=batch_size)
        distance = compare_image_sets(to_uint8(rebuilt), real, extractor)["frechet_distance"]
        scores.append(PrefixScore(levels, prefix.num_tokens, distance, psnr_db=float(psnr(rebuilt, images).mean())))
    return scores


@dataclasses.dataclass(frozen=True)
class AdaptiveScore:
    """What it takes to give every image at least a certain quality, where each keeps its own number of levels.

    Attributes:
        min_psnr: Wanted PSNR of every image, in dB.
        size: Mean size of an image's code: bits, with those that say how long it is, or real numbers of continuous tokens.
        tokens: Mean number of tokens of an image.
        psnr_db: Mean PSNR over images, in dB.
        lowest_psnr_db: PSNR that 95 % of the images have at least, in dB.
        reached: Share of images that have the wanted PSNR.
    """

    min_psnr: float
    size: float
    tokens: float
    psnr_db: float
    lowest_psnr_db: float
    reached: float


def score_adaptive(
    tokenizer: Tokenizer, images: Float[Tensor, "n 3 h w"], bounds: Sequence[float]
) -> list[AdaptiveScore]:
    """Return what `encode_adaptive` makes of images in [-1, 1] for each wanted PSNR."""
    scores = []
    for bound in bounds:
        found = encode_adaptive(tokenizer, images, min_psnr=bound)
        tokens = torch.tensor([float(prefix.tokens) for prefix in found.prefixes])[found.chosen]
        scores.append(
            AdaptiveScore(
                min_psnr=bound,
                size=float(found.sizes.mean()),
                tokens=float(tokens.mean()),
                psnr_db=float(found.psnr.mean()),
                lowest_psnr_db=float(found.psnr.quantile(0.05)),
                reached=float((found.psnr >= bound).double().mean()),
            )
        )
    return scores


def score_generations(
    pipeline: ClassToImagePipeline,
    labels: Int64[Tensor, " n"],
    reference: UInt8[Tensor, "m 3 h w"],
    extractor: FeatureExtractor,
    *,
    seed: int = 0,
    batch_size: int = 50,
    **settings: Any,
) -> list[PrefixScore]:
    """Return how close generations that stop after 1, 2, ... levels come to the reference, and how long they take.

    Every run draws from the same seed, so that a longer one continues a shorter one.

    Args:
        pipeline: Pipeline of a generator whose settings have `num_levels`.
        labels: Class label of each image to generate.
        reference: Real images.
        extractor: Feature extractor on which the distance is measured.
        seed: Seed of the draws.
        batch_size: Number of images per call of the pipeline; only the time depends on it.
        settings: Settings of the generator.

    Raises:
        TypeError: If the generator cannot stop early, or a setting is unknown.
    """
    scores = []
    for levels in pipeline.tokenizer.decodable_levels:
        pipeline.generator.make_settings(num_levels=levels, **settings)
        started, parts = time.perf_counter(), []
        for start in range(0, len(labels), batch_size):
            part = labels[start : start + batch_size].tolist()
            rng = SampleRng.of(range(start, start + len(part)), seed, "prefix")
            images = pipeline(part, generator=rng, output_type="pt", num_levels=levels, **settings).images
            assert isinstance(images, Tensor)
            parts.append(to_uint8(images.cpu()))
        seconds = time.perf_counter() - started
        tokens = sum(spec.num_tokens for spec in pipeline.tokenizer.specs[:levels])
        distance = compare_image_sets(torch.cat(parts), reference, extractor)["frechet_distance"]
        scores.append(PrefixScore(levels, tokens, distance, seconds=seconds))
    return scores
