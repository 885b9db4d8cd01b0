"""rFID and the pixel metrics of a tokenizer: encode images, decode them from every prefix of levels, compare.

The reference of the Fréchet distance is the very images that were encoded, or a statistics file. Figures of pixels are those of
the images after rounding to bytes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.config import fingerprint, to_json
from hiergen.data.sources import DataConfig
from hiergen.environment import choose_device
from hiergen.evaluation.features.distances import DistanceConfig
from hiergen.evaluation.features.extractors import (
    Extractor,
    ExtractorConfig,
    build_extractor,
    check_extractor,
    open_lpips,
)
from hiergen.evaluation.features.references import (
    Reference,
    check_count,
    check_source,
    open_evaluated,
    read_batch,
    read_npz,
)
from hiergen.evaluation.images.rate_distortion import describe_rate
from hiergen.evaluation.images.scores import summarize
from hiergen.evaluation.parts import Parts, refuse_others, run_parts
from hiergen.evaluation.protocol import (
    RESIZE_RULE,
    ROUNDING_RULES,
    PassConfig,
    Rounding,
    check_finite,
    environment,
    quantize,
)
from hiergen.evaluation.report import publish
from hiergen.files import check_writable
from hiergen.metrics.frechet import Moments
from hiergen.metrics.pixel import MS_SSIM_MIN_SIDE, WINDOW, ms_ssim, psnr, ssim
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.loading import from_pretrained
from hiergen.pipelines.prefixes import Prefix, decode_prefix, list_prefixes
from hiergen.tokenizers.base import Tokenizer

#: Images whose tokens are kept for the diagnostics of continuous latents, and that are shown.
LATENT_IMAGES, SHOWN_IMAGES = 1000, 10


@dataclasses.dataclass(frozen=True)
class RfidSettings:
    """Evaluate a tokenizer's reconstructions.

    Attributes:
        tokenizer: Folder or Hub id of the tokenizer.
        out: Folder of the report. Run again to continue or to draw it anew.
        data: The images; `data.size` must be the tokenizer's.
        num_images: The first so many images; 0 takes all.
        prefixes: Also measure every prefix of levels (or of the decoder's scales): the rate-distortion page.
        extractor: Where distances are measured.
        reference: A statistics file (.npz) in place of the images themselves.
        lpips: Backbone of LPIPS ("alex", "vgg", "squeeze"), or "none".
        lpips_folder: Where its weights are looked for first.
        rounding: Of pixels to bytes, for both sets: "nearest" or "truncate".
        distances: Subset sizes, bootstrap draws and seed.
        passes: Batch size, part size, device.
    """

    tokenizer: str = "quickstart/pipeline/tokenizer"
    out: str = "evaluation/rfid"
    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(split="test"))
    num_images: int = 0
    prefixes: bool = False
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)
    reference: str = ""
    lpips: str = "alex"
    lpips_folder: str | None = None
    rounding: Rounding = "nearest"
    distances: DistanceConfig = dataclasses.field(default_factory=DistanceConfig)
    passes: PassConfig = dataclasses.field(default_factory=PassConfig)


def evaluate_reconstructions(settings: RfidSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the data or the models do not fit together; before any long work.
        FileNotFoundError: If weights are missing.
    """
    started = time.perf_counter()
    out, device = check_writable(settings.out), choose_device(settings.passes.device)
    check_extractor(settings.extractor)
    if settings.reference:
        check_source(settings.reference)
    found = check_source(settings.data)
    if found is not None:
        _count(found, settings)
    lpips = open_lpips(settings.lpips, settings.lpips_folder, settings.data.size, device)
    tokenizer = _open_tokenizer(settings.tokenizer, settings.data.size, device)
    listed = list_prefixes(tokenizer)
    prefixes = listed if settings.prefixes else listed[-1:]
    identity: dict[str, Any] = {
        "kind": "rfid",
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "size": settings.data.size,
        "rounding": settings.rounding,
        "lpips": settings.lpips,
        "prefixes": [prefix.count for prefix in prefixes],
    }
    refuse_others(out / "parts", identity)
    extractor = build_extractor(settings.extractor, device)
    fixed = read_npz(settings.reference, extractor) if settings.reference else None
    images = open_evaluated(settings.data)
    count = _count(len(images), settings)
    identity |= {"data": images.fingerprint, "extractor": extractor.fingerprint}
    work = ReconstructionPass(tokenizer, extractor, lpips, prefixes, settings.rounding, device)
    parts = run_parts(
        out / "parts",
        identity,
        count,
        work,
        passes=settings.passes,
        what="reconstruct",
        load=lambda keys: read_batch(images, keys),
    )
    if parts is None:
        return None
    protocol = {
        "rate": describe_rate(listed),
        "images": f"the first {count:,} of {len(images):,}" if count < len(images) else f"all {count:,}",
        "resize": RESIZE_RULE,
        "rounding": ROUNDING_RULES[settings.rounding],
        "pixel metrics": "of the rounded images; PSNR and SSIM as means over images, SSIM with Gaussian windows of 11 pixels",
        "batches": settings.passes.rule,
        "lpips": "none" if lpips is None else f"v0.1, {settings.lpips}, at the images' own size",
        "reference": f"statistics file {settings.reference}" if fixed else "the very images that were encoded",
    }
    report = {
        "kind": "rfid",
        "what": f"reconstructions by {type(tokenizer).__name__} ({settings.tokenizer})",
        "protocol": protocol,
        "extractor": extractor.about(),
        "reference": fixed.about if fixed else {"kind": "the encoded images", **identity},
        "items": fingerprint([images.fingerprint, settings.data.size, count]),
        "counts": {"images": count, "reference": count if fixed is None else None},
        "seed": settings.distances.seed,
        "settings": to_json(settings),
        "environment": environment(device),
    }
    if not fixed:
        protocol["kernel distance"] = (
            "of pairs, each image's own left out; torch-fidelity's KID keeps them and is lower"
        )
    scores = summarize(
        parts, prefixes, tokenizer, extractor, lpips, settings.distances, reference=fixed or _own_reference(parts)
    )
    report |= scores.entries
    report["wall_time_s"] = round(time.perf_counter() - started, 1)
    return publish(
        out, report, values=scores.values, reference=scores.reference, pictures=scores.pictures, device=device
    )


def _open_tokenizer(path: str, size: int, device: torch.device) -> Tokenizer:
    """Return a tokenizer in eval mode on a device, after checking that it takes images of a size: it encodes a gray one."""
    tokenizer = from_pretrained(path)
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
    """Computes one batch. Images stay on the device as bytes between decoder, features and pixel metrics."""

    tokenizer: Tokenizer
    extractor: Extractor
    lpips: Callable[[Tensor, Tensor], Tensor] | None
    prefixes: list[Prefix]
    rounding: Rounding
    device: torch.device

    @torch.no_grad()
    def __call__(self, keys: range, batch: Tensor) -> dict[str, Tensor]:
        batch = check_finite(batch, keys[0], "image").to(self.device, non_blocking=True)
        pyramid = self.tokenizer.encode(batch)
        real = quantize(batch, self.rounding)
        found = {f"reference.{name}": value for name, value in self.extractor(real).items()}
        is_discrete = all(spec.is_discrete for spec in pyramid.specs)
        for level, tokens in enumerate(pyramid.levels):
            # Of continuous tokens, only as many as their diagnostics read.
            kept = tokens if is_discrete else tokens[: max(0, LATENT_IMAGES - keys[0])].float()
            found[f"tokens.{level}"] = kept
        shown = max(0, SHOWN_IMAGES - keys[0])
        found["shown.input"] = real[:shown]
        for prefix in self.prefixes:
            rebuilt = check_finite(
                decode_prefix(self.tokenizer, pyramid, prefix), keys[0], "the reconstruction of image"
            )
            pixels = quantize(rebuilt, self.rounding)
            found |= {f"{prefix.count}.{name}": value for name, value in self.extractor(pixels).items()}
            found |= {f"{prefix.count}.{name}": value for name, value in self.pixel_metrics(pixels, real).items()}
            found[f"shown.{prefix.count}"] = pixels[:shown]
        return found

    def pixel_metrics(self, pixels: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Return the metrics of each pair of uint8 images."""
        x, y = pixels.float() / 127.5 - 1, real.float() / 127.5 - 1
        found = {"psnr": psnr(x, y)}
        if min(x.shape[2:]) >= WINDOW:
            found["ssim"] = ssim(x, y)
        if min(x.shape[2:]) >= MS_SSIM_MIN_SIDE:
            found["ms_ssim"] = ms_ssim(x, y)
        if self.lpips is not None:
            found["lpips"] = self.lpips(x, y)
        return found


def run_rfid(settings: RfidSettings) -> None:
    """Evaluate and say where the report is."""
    report = evaluate_reconstructions(settings)
    if report is not None:
        print(
            f"{', '.join(f'{k} {v:.4g}' for k, v in report['metrics'].items())}\nreport: {Path(settings.out) / 'report.md'}"
        )
