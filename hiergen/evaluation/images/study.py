"""What studies of image tokenizers and their generators share: the images, a judge of them, and the measures."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor

from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.sources import open_images
from hiergen.evaluation.features.extractors import trained_extractor
from hiergen.evaluation.study import Study, StudySettings
from hiergen.metrics.classifiers import FeatureNetwork
from hiergen.metrics.fidelity import compare_image_sets
from hiergen.pretrained.perceptual import LPIPS

#: Number of samples that the network behind the Fréchet distance is trained on.
EXTRACTOR_SAMPLES = 80_000
#: Settings that results of before do not know, with the value that those had.
CAME_LATER: dict[str, Any] = {"size": 32, "hold_out_by": "number", "overrides": {}, "precision": "no"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageStudySettings(StudySettings):
    """Data that such studies share.

    Attributes:
        data: Source of the images, as `DataConfig.source`.
        hold_out: Held-out share of a source without a test split, as `DataConfig.hold_out`.
        hold_out_by: What is held out together, as `DataConfig.hold_out_by`.
        size: Height and width of the images in pixels.
        lpips: Folder of LPIPS' AlexNet weights.
        extractor: Name of the network behind the Fréchet distance in the tables.
        num_test: Number of held-out images: the first ones, so a source sorted by class must be taken whole.
        num_generated: Number of images generated for each score.
    """

    data: str = "idx:DATA/fashion-mnist"
    hold_out: int = 0
    hold_out_by: Literal["number", "name"] = "number"
    size: int = 32
    lpips: str = "DATA/lpips"
    extractor: str = "fashion-cnn-32"
    num_test: int = 2_000
    num_generated: int = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoPartSettings(ImageStudySettings):
    """Parts and budget of studies that compare tokenizers first, then generators on two of them.

    Attributes:
        part: Part of the study: "reconstruction" (all tokenizers) or "generation" (after it, on two of them).
        tokenizer_samples: Number of training samples of a tokenizer.
        generator_samples: Number of training samples of a generator.
        overrides: Entries of the config of all tokenizers to replace, before what a variant changes.
        precision: Number format of the tokenizers' training, as `TrainConfig.precision`.
    """

    part: Literal["reconstruction", "generation"] = "reconstruction"
    tokenizer_samples: int = 24_000
    generator_samples: int = 25_000
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    precision: Literal["no", "bf16"] = "no"


S = TypeVar("S", bound=ImageStudySettings)


class ImageStudy(Study[S]):
    """Runs that share images and the network that scores them.

    Args:
        settings: Budget and data of the study.
        num_train: Number of training images that generators and the judge are trained on, the first ones.
    """

    FREE: ClassVar[tuple[str, ...]] = ("data", "lpips", "out", "part", "seeds")

    def __init__(self, settings: S, num_train: int) -> None:
        super().__init__(settings)
        self.train = _first_images(self.data("train"), num_train)
        self.test = _first_images(self.data("test"), settings.num_test)
        images, epochs = to_uint8(self.train.images), max(1, round(EXTRACTOR_SAMPLES / len(self.train)))
        path = self.out / f"{settings.extractor}.safetensors"
        self.extractor = trained_extractor(path, images, self.train.labels, of="the train images", epochs=epochs)
        share = self.agreement(self.test.images, self.test.labels)
        print(f"{settings.extractor}: {share:.1%} of {len(self.test)} test images", file=sys.stderr)

    def common(self) -> dict[str, Any]:
        return {
            key: value for key, value in super().common().items() if key not in CAME_LATER or CAME_LATER[key] != value
        }

    def data(self, split: Literal["train", "test"]) -> DataConfig:
        """Return the images of a split, read from disk as they are needed."""
        settings = self.settings
        return DataConfig(
            source=settings.data,
            split=split,
            hold_out=settings.hold_out,
            hold_out_by=settings.hold_out_by,
            size=settings.size,
            in_memory=False,
        )

    def agreement(self, images: Tensor, labels: Tensor) -> float:
        """Return the share of images in [-1, 1] in which the judge sees their labels."""
        said = cast(FeatureNetwork, self.extractor.network).scores(to_uint8(images)).argmax(1)
        return float((said == labels).double().mean())

    @torch.no_grad()
    def lpips(self, images: Tensor) -> float:
        """Return the mean LPIPS of rebuilt held-out images."""
        network = LPIPS.from_files("alex", folder=self.settings.lpips)
        parts = zip(images.split(250), self.test.images.split(250), strict=True)
        return float(torch.cat([network(a, b) for a, b in parts]).mean())

    def distances(self, images: Tensor, *, to: Literal["train", "test"]) -> dict[str, float]:
        """Return the distances of images in [-1, 1] to the held-out ones, or to the first 5,000 training images."""
        reference = self.test.images if to == "test" else self.train.images[:5_000]
        return compare_image_sets(to_uint8(images), to_uint8(reference), self.extractor)


def _first_images(config: DataConfig, count: int) -> ImageSet:
    pictures = cast(PictureSet, open_images(config))
    batch = pictures.batch([(index, 0) for index in range(min(count, len(pictures)))], seed=0)
    return ImageSet(batch["image"], batch["label"], pictures.classes)
