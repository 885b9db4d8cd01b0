"""The extractor of an evaluation of images, whether it fits them, and whether generated images show the class that was asked for."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hiergen.data.config import DataConfig
from hiergen.data.files.folders import first_names
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.overview import describe_images, image_labels, spread_over_classes
from hiergen.data.sources import open_pictures
from hiergen.evaluation.features.extractors import (
    Extractor,
    ExtractorConfig,
    Training,
    build_extractor,
    check_extractor,
    classifier_extractor,
)
from hiergen.evaluation.features.own import MIN_PER_CLASS, learned_classes, own_classifier, resized
from hiergen.evaluation.features.references import IN_MEMORY, read_batch
from hiergen.evaluation.protocol import Rounding, quantize
from hiergen.files import check_writable
from hiergen.metrics.intervals import NORMAL_95
from hiergen.telling import counted

#: Number of pictures that are looked at, and range of the differences of their channels, of 255, that counts as gray.
LOOKED_AT, GRAY = 32, 8
#: Pictures of a side so many times larger or smaller than those of the training look different; resized ones stand more.
FAR, FAR_RESIZED = 1.9, 4.1


def check_image_extractor(config: ExtractorConfig, data: DataConfig | None) -> None:
    """Check an extractor and that it can be had for data, without reading pictures.

    Args:
        config: Which extractor.
        data: Pictures with classes; None where there is a file of statistics in their place.

    Raises:
        ValueError: If it cannot.
        FileNotFoundError: If weights are missing.
        ImportError: If torch-fidelity is not installed.
    """
    check_extractor(config, has_classes=data is not None)
    if config.name == "own" and data is not None and data.source.partition(":")[0] not in IN_MEMORY:
        source = open_pictures(data)
        learned_classes(source.labels, source.classes, data.source)


@dataclasses.dataclass(frozen=True)
class RealPictures:
    """Real pictures of an evaluation, as bytes.

    Attributes:
        images: The pictures.
        source: Name of the pictures in messages.
        rounding: Rule that rounds pixels to bytes.
    """

    images: ImageSet | PictureSet
    source: str
    rounding: Rounding

    def __str__(self) -> str:
        return f"{describe_images(self.images, is_trained_on=False)}, from {self.source}"

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return pictures by their indices, uint8 `(b, 3, h, w)`."""
        return quantize(read_batch(self.images, indices), self.rounding)


def open_image_extractor(
    config: ExtractorConfig, real: RealPictures | None, *, cache: str, device: torch.device
) -> tuple[Extractor, list[str]]:
    """Return an extractor, and what speaks against it for these pictures.

    Args:
        config: Which extractor; "own" is trained on the pictures unless the cache has it.
        real: Real pictures of the evaluation; None where there is a file of statistics in their place.
        cache: Folder of what was computed from data that were seen before.
        device: Device of the extractor.
    """
    if real is None:
        return build_extractor(config, device), []
    if config.name == "own":
        extractor, doubts = _train_own(config, real, check_writable(Path(cache).expanduser(), option="--cache"), device)
    else:
        extractor, doubts = build_extractor(config, device), []
    if extractor.training is not None:
        shown = real.read(spread_over_classes(image_labels(real.images), LOOKED_AT))
        doubts += mismatches(extractor.name, extractor.training, shown, real.images.classes)
    return extractor, doubts


def _train_own(
    config: ExtractorConfig, real: RealPictures, cache: Path, device: torch.device
) -> tuple[Extractor, list[str]]:
    labels, classes = image_labels(real.images), real.images.classes
    learned = learned_classes(labels, classes, real.source)
    found = own_classifier(
        real.read,
        labels,
        learned,
        identity={"data": real.images.fingerprint, "rounding": real.rounding},
        size=config.size,
        budget=config.budget,
        seed=config.seed,
        cache=cache,
    )
    left_out = [name or str(number) for number, name in enumerate(classes) if number not in learned]
    doubts = list(found.doubt)
    if left_out:
        doubts.append(
            f"extractor 'own' did not learn {counted(len(left_out), 'class')} with fewer than {MIN_PER_CLASS} pictures ({first_names(left_out)})"
        )
    extractor = classifier_extractor(
        config.name,
        f"{found.network.FEATURES} features of {found.description} of {real.source!r} in {counted(len(learned), 'class')} (seed {config.seed}; "
        "not Inception: its distances compare only with each other)",
        found.network,
        device,
        training=Training(
            what=repr(real.source),
            size=config.size,
            resizes=True,
            is_gray=False,
            classes=tuple(name if number in learned else None for number, name in enumerate(classes)),
            accuracy=found.accuracy,
            num_held_out=found.num_held_out,
        ),
        prepare=functools.partial(resized, size=config.size),
    )
    return extractor, doubts


def mismatches(name: str, training: Training, images: UInt8[Tensor, "n 3 h w"], classes: Sequence[str]) -> list[str]:
    """Return a warning where pictures are not what an extractor was trained on: in color, of a far size, of other classes.

    Args:
        name: Name of the extractor.
        training: What it was trained on.
        images: Some of the pictures.
        classes: Name of each of their classes.
    """
    found = []
    if training.is_gray and int((images.amax(dim=1).int() - images.amin(dim=1).int()).max()) > GRAY:
        found.append("they are in color, it knows gray ones alone")
    side, far = max(images.shape[-2:]), FAR_RESIZED if training.resizes else FAR
    if side >= far * training.size or training.size >= far * side:
        seen = "it looks at them at" if training.resizes else "it was trained at"
        found.append(
            f"they have {images.shape[-1]} x {images.shape[-2]} pixels, {seen} {training.size} x {training.size}"
        )
    known = [one for one in training.classes if one is not None]
    if not training.resizes and set(classes) != set(known):
        theirs = first_names(classes) if any(classes) else "none"
        found.append(f"their classes ({theirs}) are not its own ({first_names(known)})")
    if not found:
        return []
    if training.resizes:
        advice = f"--extractor.size {max(8, side // 2)} shows it more"
    else:
        advice = "--extractor.name own learns classes of yours, inception and dinov2-b read weights from a file"
    return [
        f"extractor {name!r} was trained on {training.what} and does not fit these pictures: {'; '.join(found)}. Its distances, precision and "
        f"recall say little about them ({advice})"
    ]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How often a classifier names the class that was asked for.

    Attributes:
        share: Share of the samples.
        count: Number of samples whose class it knows.
        sentence: The share beside that of real pictures that it was not trained on.
    """

    share: float
    count: int
    sentence: str

    @property
    def half_width(self) -> float:
        """Half of the binomial 95 % interval."""
        return NORMAL_95 * math.sqrt(self.share * (1 - self.share) / self.count)


def agreement(
    logits: Float[Tensor, "n k"], labels: Sequence[int], names: Sequence[str], extractor: Extractor
) -> Agreement | None:
    """Return how often a classifier names the class that was asked for; None where it knows none of these classes.

    Args:
        logits: Class scores of the generated images.
        labels: Class that was asked for in each.
        names: Name of each class of the generator.
        extractor: The classifier.
    """
    training = extractor.training
    if training is None:
        return None
    numbers = {name: number for number, name in enumerate(training.classes) if name is not None}
    judged = [index for index, label in enumerate(labels) if names[label] in numbers]
    if not judged:
        return None
    asked = torch.tensor([numbers[names[labels[index]]] for index in judged])
    share = float((logits[judged].argmax(dim=1) == asked).double().mean())
    sentence = (
        f"The classifier of extractor {extractor.name!r} agrees with the class that was asked for in {share:.1%} of {counted(len(judged), 'sample')} "
        f"(by chance: {1 / len(training.classes):.1%}); on {counted(training.num_held_out, 'held-out real picture')} it is right in {training.accuracy:.1%}"
    )
    return Agreement(share, len(judged), sentence)
