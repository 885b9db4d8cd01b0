"""rFID and the pixel metrics of a tokenizer: encode images, decode them from every prefix of levels, compare.

The reference of the Fréchet distance is the very images that were encoded, or a statistics file. Figures of pixels are those of
the images after rounding to bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.images.overview import class_counts, image_labels, spread_over_classes
from hiergen.evaluation.features.extractors import Extractor, open_lpips
from hiergen.evaluation.features.references import (
    Reference,
    check_count,
    check_source,
    open_evaluated,
    read_batch,
    read_npz,
)
from hiergen.evaluation.images.fit import RealPictures, check_image_extractor, open_image_extractor
from hiergen.evaluation.images.pair_metrics import added_metrics, measure_pairs
from hiergen.evaluation.images.rate_distortion import describe_rate
from hiergen.evaluation.images.scores import summarize
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.protocol import RESIZE_RULE, ROUNDING_RULES, check_finite, quantize
from hiergen.evaluation.runner import Evaluation, Findings, Work, run_evaluation
from hiergen.evaluation.settings import RfidSettings, Rounding
from hiergen.metrics.frechet import Moments
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import Prefix, decode_prefix, list_prefixes
from hiergen.telling import counted
from hiergen.tokenizers.base import Tokenizer

#: Number of images whose tokens are kept for the diagnostics of continuous latents, and number that are shown.
LATENT_IMAGES, SHOWN_IMAGES = 1000, 10


def evaluate_reconstructions(settings: RfidSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the data or the models do not fit together; before any long work.
        FileNotFoundError: If weights are missing.
    """
    return run_evaluation(Reconstruction(settings))


class Reconstruction(Evaluation[RfidSettings]):
    """Images against what a tokenizer makes of them."""

    kind = "rfid"

    def check(self) -> None:
        check_image_extractor(self.settings.extractor, None if self.settings.reference else self.settings.data)
        if self.settings.reference:
            check_source(self.settings.reference)
        found = check_source(self.settings.data)
        if found is not None:
            _count(found, self.settings)

    def open_models(self) -> dict[str, Any]:
        settings = self.settings
        self.lpips = open_lpips(settings.lpips, settings.lpips_folder, settings.data.size, self.device)
        self.tokenizer = _open_tokenizer(settings.tokenizer, settings.data.size, self.device)
        listed = list_prefixes(self.tokenizer)
        self.rate, self.prefixes = describe_rate(listed), listed if settings.prefixes else listed[-1:]
        return {
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "size": settings.data.size,
            "rounding": settings.rounding,
            "lpips": settings.lpips,
            "prefixes": [prefix.count for prefix in self.prefixes],
            **({"metrics": added_metrics()} if added_metrics() else {}),
        }

    def open_data(self) -> dict[str, Any]:
        settings = self.settings
        self.images = open_evaluated(settings.data)
        self.count = _count(len(self.images), settings)
        real = RealPictures(self.images, settings.data.source, settings.rounding)
        found = open_image_extractor(settings.extractor, real, cache=settings.cache, device=self.device)
        self.extractor, self.doubts = found
        self.found = str(real)
        self.fixed = read_npz(settings.reference, self.extractor) if settings.reference else None
        labels = image_labels(self.images)[: self.count]
        self.shown = frozenset(spread_over_classes(labels, SHOWN_IMAGES))
        classes, taken = (
            sum(map(bool, class_counts(of, len(self.images.classes)))) for of in (image_labels(self.images), labels)
        )
        if taken < classes:
            self.doubts.append(
                f"the first {counted(self.count, 'image')} of {len(self.images):,} are of {counted(taken, 'class')} of {classes:,}: they stand for "
                "no others (--num-images 0 takes all)"
            )
        return {"data": self.images.fingerprint, "extractor": self.extractor.fingerprint}

    def prepare(self) -> Work:
        compute = ReconstructionPass(
            self.tokenizer, self.extractor, self.lpips, self.prefixes, self.settings.rounding, self.device, self.shown
        )
        return Work(self.count, compute, "reconstruct", lambda keys: read_batch(self.images, keys))

    def summarize(self, parts: Parts | None) -> Findings:
        assert parts is not None
        settings, fixed = self.settings, self.fixed
        scores = summarize(
            parts,
            self.prefixes,
            self.tokenizer,
            self.extractor,
            self.lpips,
            settings.distances,
            reference=fixed or _own_reference(parts),
        )
        return Findings(
            what=f"reconstructions by {type(self.tokenizer).__name__} ({settings.tokenizer})",
            metrics=scores.metrics,
            protocol=self._protocol(),
            extractor=self.extractor.about(),
            reference=fixed.about if fixed else {"kind": "the encoded images", **self.identity},
            counts={"images": self.count, "reference": self.count if fixed is None else None},
            seed=settings.distances.seed,
            warnings=[*self.doubts, *scores.warnings],
            more={"items": fingerprint([self.images.fingerprint, settings.data.size, self.count]), **scores.entries},
            values=scores.values,
            statistics=scores.reference,
            pictures=scores.pictures,
        )

    def _protocol(self) -> dict[str, str]:
        settings, count, found = self.settings, self.count, len(self.images)
        pairs = "of pairs, each image's own left out; torch-fidelity's KID keeps them and is lower"
        return {
            "rate": self.rate,
            "images": f"the first {count:,} of {found:,}" if count < found else f"all {count:,}",
            "resize": RESIZE_RULE,
            "rounding": ROUNDING_RULES[settings.rounding],
            "pixel metrics": "of the rounded images; PSNR and SSIM as means over images, SSIM with Gaussian windows of 11 pixels",
            "batches": settings.passes.rule,
            "lpips": "none" if self.lpips is None else f"v0.1, {settings.lpips}, at the images' own size",
            "reference": f"statistics file {settings.reference}" if self.fixed else "the very images that were encoded",
            **({} if self.fixed else {"kernel distance": pairs}),
        }


def _open_tokenizer(path: str, size: int, device: torch.device) -> Tokenizer:
    """Return a tokenizer in eval mode on a device, after checking that it takes images of a size: it encodes a gray one."""
    tokenizer = from_pretrained(path)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"{path!r} holds a {type(tokenizer).__name__}, expected an image tokenizer")
    torch.nn.Module.to(tokenizer.eval(), device)
    own = tokenizer.config.get("image_size", size)
    try:
        with torch.no_grad():
            tokenizer.encode(torch.zeros(1, 3, own, own, device=device))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path!r} holds a {type(tokenizer).__name__}, which takes no images: {error}") from error
    if size != own:
        raise ValueError(
            f"images have shape {(3, size, size)}, the tokenizer takes {(3, own, own)}: set data.size to {own}"
        )
    return tokenizer


def _count(found: int, settings: RfidSettings) -> int:
    """Return how many of the images are evaluated, after checking that there are as many."""
    if settings.num_images < 0 or settings.num_images > found:
        raise ValueError(f"num_images is {settings.num_images}, expected 0 (all) to {found}, the number of images")
    count = settings.num_images or found
    check_count(count, "the evaluation")
    return count


def _own_reference(parts: Parts) -> Reference:
    features = parts.read("reference.pool")
    spatial = Moments.of(parts.read("reference.spatial")) if "reference.spatial" in parts.names() else None
    return Reference(Moments.of(features), spatial, features, {})


@dataclasses.dataclass(frozen=True)
class ReconstructionPass:
    """Computes one batch. Images stay on the device as bytes between decoder, features and pixel metrics.

    Attributes:
        tokenizer: Tokenizer that encodes and decodes.
        extractor: Extractor of features.
        lpips: Computes LPIPS; None leaves it out.
        prefixes: Parts of the tokens that are decoded.
        rounding: Rule that rounds pixels to bytes.
        device: Device of the models.
        shown: Indices of the images that the report shows.
    """

    tokenizer: Tokenizer
    extractor: Extractor
    lpips: Callable[[Tensor, Tensor], Tensor] | None
    prefixes: list[Prefix]
    rounding: Rounding
    device: torch.device
    shown: Collection[int] = frozenset()

    @torch.no_grad()
    def __call__(self, keys: range, batch: Tensor) -> dict[str, Tensor]:
        batch = check_finite(batch, keys[0], "image").to(self.device, non_blocking=True)
        pyramid = self.tokenizer.encode(batch)
        real = quantize(batch, self.rounding)
        found = {f"reference.{name}": value for name, value in self.extractor(real).items()}
        is_discrete = all(spec.is_discrete for spec in pyramid.specs)
        for level, tokens in enumerate(pyramid.levels):
            # Diagnostics of continuous tokens read no more than these.
            kept = tokens if is_discrete else tokens[: max(0, LATENT_IMAGES - keys[0])].float()
            found[f"tokens.{level}"] = kept
        shown = [place for place, key in enumerate(keys) if key in self.shown]
        found["shown.input"] = real[shown]
        for prefix in self.prefixes:
            rebuilt = check_finite(
                decode_prefix(self.tokenizer, pyramid, prefix), keys[0], "the reconstruction of image"
            )
            pixels = quantize(rebuilt, self.rounding)
            found |= {f"{prefix.count}.{name}": value for name, value in self.extractor(pixels).items()}
            found |= {
                f"{prefix.count}.{name}": value for name, value in measure_pairs(pixels, real, self.lpips).items()
            }
            found[f"shown.{prefix.count}"] = pixels[shown]
        return found
