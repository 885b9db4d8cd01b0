"""gFID and its companions: generate images, or read samples that others generated, and compare them with a reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.data.images.overview import spread_over_classes
from hiergen.evaluation.features.distances import bias_curve, measure
from hiergen.evaluation.features.references import check_source, open_evaluated, open_reference
from hiergen.evaluation.images.fit import (
    Agreement,
    RealPictures,
    agreement,
    check_image_extractor,
    open_image_extractor,
)
from hiergen.evaluation.images.samples import open_samples, write_samples
from hiergen.evaluation.images.sampling import TokenSource, open_tokens
from hiergen.evaluation.parts import Parts
from hiergen.evaluation.protocol import ROUNDING_RULES, check_finite, quantize
from hiergen.evaluation.runner import Evaluation, Findings, Work, run_evaluation
from hiergen.evaluation.settings import GfidSettings, check_seed
from hiergen.files import check_writable
from hiergen.metrics.fidelity import check_count
from hiergen.pipelines.labels import titles

SHOWN_IMAGES = 64
#: Most classes that have a row each among the examples.
MOST_ROWS = 16
#: Number of images to generate where none is given.
DEFAULT_IMAGES = 5000


def evaluate_generations(settings: GfidSettings) -> dict[str, Any] | None:
    """Run (or continue) an evaluation, write its report and return it; None on all processes but the main one.

    Raises:
        ValueError: If the settings, the samples, the reference or the models do not fit together; before any long work.
        FileNotFoundError: If weights are missing.
    """
    return run_evaluation(Generation(settings))


class Generation(Evaluation[GfidSettings]):
    """Generated images, or samples of others, against real images."""

    kind = "gfid"

    def check(self) -> None:
        settings = self.settings
        check_seed(settings.seed)
        check_image_extractor(settings.extractor, None if settings.reference else settings.data)
        pictures = check_source(settings.reference or settings.data)
        if pictures is not None:
            check_count(pictures, "the reference")
        check_writable(Path(settings.cache).expanduser(), option="--cache")

    def open_models(self) -> dict[str, Any]:
        self.source = _open_source(self.settings, self.device)
        check_count(self.source.count, "the evaluation")
        _check_size(self.source, self.settings)
        return {**self.source.identity, "keep": self.settings.keep != "none"}

    def open_data(self) -> dict[str, Any]:
        settings = self.settings
        self.images = None if settings.reference else open_evaluated(settings.data)
        real = None if self.images is None else RealPictures(self.images, settings.data.source, settings.rounding)
        found = open_image_extractor(settings.extractor, real, cache=settings.cache, device=self.device)
        self.extractor, self.doubts = found
        self.found = "" if real is None else str(real)
        return {"extractor": self.extractor.fingerprint}

    def prepare(self) -> Work:
        settings = self.settings
        # Before the images are made: a picture of the reference that cannot be read shows now.
        self.real = open_reference(
            settings.reference or settings.data,
            self.extractor,
            rounding=settings.rounding,
            passes=settings.passes,
            cache=settings.cache,
            device=self.device,
            images=self.images,
        )
        return Work(self.source.count, self._describe, "generate", self.source.load)

    @torch.no_grad()
    def _describe(self, keys: range, loaded: Any) -> dict[str, Tensor]:
        """Return what is stored about a batch of images."""
        images = self.source.make(keys, loaded)
        shown = [place for place, key in enumerate(keys) if key in self.source.shown]
        found = {**self.extractor(images), "shown": images[shown]}
        return found if self.settings.keep == "none" else {**found, "images": images}

    def summarize(self, parts: Parts | None) -> Findings:
        assert parts is not None
        settings, real = self.settings, self.real
        write_samples(parts, self.out, settings.keep, self.source.count)
        names: list[str] = [name for name in ("pool", "spatial", "logits") if name in parts.names()]
        features = {name: parts.read(name) for name in names}
        classes = [name for _, name in sorted(self.source.tokens.names.items())] if self.source.tokens else []
        found = measure(features, real, self.extractor, settings.distances)
        judged = self._judge(features.get("logits"))
        if judged is not None:
            found.metrics["agreement"], found.half_widths["agreement"] = judged.share, judged.half_width
        return Findings(
            what=f"samples of {settings.samples}" if settings.samples else f"images generated by {settings.pipeline}",
            metrics={f"g{k}" if k.startswith(("FID", "FD")) else k: v for k, v in found.metrics.items()},
            protocol={**_protocol(settings), "batches": settings.passes.rule},
            extractor=self.extractor.about(),
            reference=real.about,
            counts={"images": self.source.count, "reference": None if real.features is None else len(real.features)},
            seed=settings.seed,
            warnings=[*self.doubts, *found.warnings],
            more={
                **({} if judged is None else {"agreement": judged.sentence}),
                "intervals_95": found.half_widths,
                "bias": bias_curve(features["pool"], real, settings.distances),
                **({"classes": classes} if classes else {}),
            },
            values={"pool": features["pool"]},
            statistics=real,
            pictures=example_rows(parts.read("shown"), self.source.tokens, sorted(self.source.shown)),
        )

    def _judge(self, logits: Tensor | None) -> Agreement | None:
        """Return how often the extractor's classifier agrees with the class that was asked for; None where it has no opinion."""
        tokens = self.source.tokens
        if logits is None or tokens is None:
            return None
        labels = tokens.labels(range(self.source.count)).tolist()
        # A generator without names was trained on classes in the order of the data's, if it has as many.
        names = tokens.classes or (() if self.images is None else self.images.classes)
        return agreement(logits, labels, names, self.extractor) if max(labels) + 1 == len(names) else None


def example_rows(images: Tensor, tokens: TokenSource | None, keys: Sequence[int]) -> dict[str, Tensor]:
    """Return images in rows with captions: one row per class where there are few, otherwise as they come.

    Args:
        images: Images of the items `keys`.
        tokens: What drew them; None of images of others, whose classes are unknown.
        keys: Indices of the items, ascending.
    """
    labels = [] if tokens is None else tokens.labels(range(keys[-1] + 1))[list(keys)].tolist()
    classes = sorted(set(labels))
    if tokens is not None and len(classes) <= MOST_ROWS:
        rows = [torch.tensor([place for place, own in enumerate(labels) if own == label]) for label in classes]
        return {title: images[row] for title, row in zip(titles(tokens.names, classes), rows, strict=True)}
    columns = min(16, len(images))
    found = {}
    for row, part in enumerate(images.split(columns)):
        own = labels[row * columns :][: len(part)]
        ends = [] if tokens is None else titles(tokens.names, [own[0], own[-1]])
        found[f"{row}: {ends[0]} to {ends[1]}" if ends else str(row)] = part
    return {caption: part for caption, part in found.items() if len(part) == columns}


def _protocol(settings: GfidSettings) -> dict[str, str]:
    rounding = ROUNDING_RULES[settings.rounding]
    if settings.samples:
        return {"labels": "as the samples have them", "samples": "bytes already", "rounding": rounding}
    return {**settings.draw_protocol, "rounding": rounding}


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the evaluated images come from.

    Attributes:
        count: Number of images.
        size: Height and width in pixels.
        identity: JSON values that the images depend on.
        load: Reads samples by their indices; None where images are generated.
        make: Maps indices, and what was loaded for them, to uint8 images `(b, 3, h, w)` on the device.
        shown: Indices of the images that the report shows.
        tokens: What draws the tokens of generated images; None of samples.
    """

    count: int
    size: tuple[int, int]
    identity: dict[str, Any]
    load: Callable[[range], Tensor] | None
    make: Callable[[range, Any], Tensor]
    shown: frozenset[int]
    tokens: TokenSource | None = None


def _open_source(settings: GfidSettings, device: torch.device) -> _Source:
    if settings.samples:
        samples = open_samples(settings.samples, settings.num_images)
        return _Source(
            samples.count,
            samples.size,
            {"samples": samples.digest},
            samples.read,
            lambda _, images: images.to(device, non_blocking=True),
            # A folder is sorted, mostly by class.
            frozenset(spread_over_classes([0] * samples.count, SHOWN_IMAGES)),
        )
    if settings.num_images < 0:
        raise ValueError(f"num_images is {settings.num_images}, expected the number of images to generate")
    tokens = open_tokens(settings, "ClassToImagePipeline", device)

    def generate(keys: range, _: None) -> Tensor:
        decoded = check_finite(tokens.tokenizer.decode(tokens.draw(keys)), keys[0], "generated image")
        return quantize(decoded, settings.rounding)

    identity = {**tokens.identity, "rounding": settings.rounding}
    side = tokens.tokenizer.config.get("image_size", settings.data.size)
    count = settings.num_images or DEFAULT_IMAGES
    shown = frozenset(spread_over_classes(tokens.labels(range(count)).tolist(), SHOWN_IMAGES))
    return _Source(count, (side, side), identity, None, generate, shown, tokens)


def _check_size(source: _Source, settings: GfidSettings) -> None:
    """Check that squares have the size that reference images are read at; an extractor would resize both and hide it."""
    (height, width), wanted = source.size, settings.data.size
    if not settings.reference and height == width != wanted:
        raise ValueError(
            f"the images to evaluate have {height} x {width} pixels, the reference is read at {wanted} x {wanted}: set data.size to {height}"
        )
