"""Pictures that stay on disk: any number of them, decoded, cropped and flipped when a batch asks for them.

Where pictures lie is a `PictureSource` (folders here; shards, tar files in `shards`, Hugging Face datasets and .npz files in `archives`, MNIST's files in `idx`);
what is made of them is a `PictureSet`. Broken pictures are skipped, counted and named. Images decoded once are in `in_memory`.
"""

from __future__ import annotations

import abc
import hashlib
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from hiergen.data.dataset import Dataset, Sample
from hiergen.data.files.content import Span, content_digest
from hiergen.data.files.folders import class_names, class_order
from hiergen.data.images.files import image_size, list_images, read_image
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.pixels import center_crop, to_tensor
from hiergen.data.text.captions import Captions, read_folder_captions
from hiergen.seeding import derive_seed

logger = logging.getLogger(__name__)

#: Number of unreadable pictures in a row that is no accident.
MAX_BROKEN_IN_A_ROW = 100

Views = Literal["center", "flips", "ten_crop"]


class PictureSource(abc.ABC):
    """Pictures with labels, by index.

    Attributes:
        labels: Class of each.
        classes: Name of each class.
        fingerprint: Digits that change when the data change.
        names: Name of each, where the source has names.
    """

    labels: list[int]
    classes: tuple[str, ...]
    fingerprint: str
    names: tuple[str, ...] = ()

    @abc.abstractmethod
    def read(self, index: int) -> Image.Image:
        """Return one picture in RGB.

        Raises:
            ValueError: If it cannot be read; it is named.
        """

    def stored_size(self, index: int) -> tuple[int, int]:
        """Return width and height of one picture as it is stored.

        Raises:
            ValueError: If it cannot be read; it is named.
        """
        return self.read(index).size

    def spans(self) -> list[Span]:
        """Return what of which files the pictures are, if the fingerprint does not cover their content."""
        return []

    def captions(self) -> tuple[Captions, ...]:
        """Return the texts that the source has of each picture, none where it has no texts.

        Raises:
            ValueError: If it has texts, but a picture has none.
        """
        return ()


class FolderPictures(PictureSource):
    """The pictures below a folder; its sub-folders are the classes, in natural order.

    The fingerprint covers names and sizes of the files, not their content: that is what `spans` are for.

    Raises:
        ValueError: If the folder is missing or holds no picture.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._paths = list_images(folder)
        names = class_names(self._paths, folder)
        self.classes = class_order(names)
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = [numbers[name] for name in names]
        listing = "".join(f"{path.relative_to(folder)}\0{_size(path)}\0" for path in self._paths)
        if list(self.classes) != sorted(self.classes):
            # Earlier versions numbered such classes otherwise.
            listing += "".join(f"{name}\0" for name in self.classes)
        self.fingerprint = hashlib.sha256(listing.encode()).hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def stored_size(self, index: int) -> tuple[int, int]:
        return image_size(self._paths[index])

    def spans(self) -> list[Span]:
        return [Span(path) for path in self._paths]

    def captions(self) -> tuple[Captions, ...]:
        found = read_folder_captions(self._folder)
        names = [path.relative_to(self._folder).as_posix() for path in self._paths] if found else []
        for name in names:
            if name not in found:
                raise ValueError(
                    f"the captions of {str(self._folder)!r} have no row for {name!r}, expected one per picture"
                )
        return tuple(found[name] for name in names)


def _size(path: Path) -> int:
    # A link to nothing is a broken picture among others.
    return path.stat().st_size if path.exists() else -1


class SplitPictures(PictureSource):
    """One side of a source that has no split of its own.

    Args:
        source: All pictures.
        split: "train" or "test".
        hold_out: One of so many is "test", all others are "train".
        by: "number" makes pictures 0, `hold_out`, 2 `hold_out`, ... "test": a source sorted by class keeps its shares. "name" makes those
            "test" where `derive_seed("hold_out", thing) % hold_out` is 0; `thing` is what stands behind the last slash of the name, so
            that a thing is on the same side in all of its styles, whatever else the source holds.

    Raises:
        ValueError: If the split is unknown, `hold_out` would leave one side empty, or the source has no names to divide it by.
    """

    def __init__(
        self, source: PictureSource, *, split: str, hold_out: int, by: Literal["number", "name"] = "number"
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}, expected 'train' or 'test'")
        count = len(source.labels)
        if hold_out < 2 or count < 2:
            raise ValueError(
                f"hold_out is {hold_out} for {count} pictures, expected at least 2 for at least 2 pictures"
            )
        if by == "name" and not source.names:
            raise ValueError("hold_out_by is 'name', but these pictures have no names: leave it at 'number'")
        self._source = source
        remainders: Sequence[int] = range(count)
        if by == "name":
            remainders = [derive_seed("hold_out", name.rpartition("/")[2]) for name in source.names]
        self._indices = [index for index in range(count) if (remainders[index] % hold_out == 0) == (split == "test")]
        if not self._indices:
            raise ValueError(f"hold_out is {hold_out} and leaves no {split!r} of {count} pictures divided by {by}")
        self.labels = [source.labels[index] for index in self._indices]
        self.names = tuple(source.names[index] for index in self._indices) if source.names else ()
        self.classes = source.classes
        self.fingerprint = f"{source.fingerprint}-{split}-{hold_out}" + ("-by-name" if by == "name" else "")

    def read(self, index: int) -> Image.Image:
        return self._source.read(self._indices[index])

    def stored_size(self, index: int) -> tuple[int, int]:
        return self._source.stored_size(self._indices[index])

    def spans(self) -> list[Span]:
        spans = self._source.spans()
        # A source whose files hold many pictures without saying where is looked at whole.
        return [spans[index] for index in self._indices] if len(spans) == len(self._source.labels) else spans

    def captions(self) -> tuple[Captions, ...]:
        texts = self._source.captions()
        return tuple(texts[index] for index in self._indices) if texts else ()


class PictureSet(Dataset):
    """A dataset of pictures on disk.

    Args:
        source: The pictures.
        size: Height and width in pixels.
        crop: "center", or "random" for ADM's random crop.
        flip: Mirror every second picture, at random.
        min_crop: Smallest part of the short side that a random crop keeps.
        is_strict: A picture that cannot be read is an error; otherwise it is skipped and the next one stands in for it.

    Attributes:
        broken: What is wrong with each picture that could not be read so far, by index; in this process.
    """

    unit = "image"

    def __init__(
        self,
        source: PictureSource,
        *,
        size: int,
        crop: str = "center",
        flip: bool = False,
        min_crop: float = 0.8,
        is_strict: bool = False,
    ) -> None:
        if crop not in ("center", "random"):
            raise ValueError(f"crop is {crop!r}, expected 'center' or 'random'")
        if not 0 < min_crop <= 1:
            raise ValueError(f"min_crop is {min_crop}, expected above 0 and at most 1")
        self.source, self.size, self.crop, self.flip, self.min_crop = source, size, crop, flip, min_crop
        self.is_strict = is_strict
        if not source.labels:
            raise ValueError(
                f"the source of pictures is empty ({type(source).__name__}), expected at least one picture"
            )
        self.broken: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.source.classes

    @property
    def labels(self) -> list[int]:
        """Class of each picture."""
        return self.source.labels

    @property
    def fingerprint(self) -> str:
        return f"{self.source.fingerprint}-{self.size}"

    def content(self, *, is_whole: bool = False) -> str | None:
        spans = self.source.spans()
        return content_digest(spans, is_whole=is_whole) if spans else None

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return `image`, `label`, and `is_substitute`: True where the next readable picture stands in for a broken one."""
        images, labels, substitutes = [], [], []
        for index, epoch in samples:
            picture, found = self.read(index)
            draws = np.random.Generator(np.random.Philox(derive_seed(seed, "crop", epoch, index)))
            if self.crop == "random":
                picture = random_crop(picture, self.size, draws, min_crop=self.min_crop)
            else:
                picture = center_crop(picture, self.size)
            image = to_tensor(picture)
            images.append(image.flip(-1) if self.flip and draws.random() < 0.5 else image)
            labels.append(self.source.labels[found])
            substitutes.append(found != index)
        return {
            "image": torch.stack(images),
            "label": torch.tensor(labels),
            "is_substitute": torch.tensor(substitutes),
        }

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return a picture and its index: the one asked for, or the next one that can be read.

        Raises:
            ValueError: If too many in a row cannot be read; if this one cannot, where the set is strict.
        """
        if self.is_strict:
            return self.source.read(index), index
        for step in range(min(len(self), MAX_BROKEN_IN_A_ROW)):
            place = (index + step) % len(self)
            if place in self.broken:
                continue
            try:
                return self.source.read(place), place
            except ValueError as error:
                self.broken[place] = str(error)
                logger.warning("skipped (%d so far): %s", len(self.broken), error)
        raise ValueError(
            f"{step + 1} pictures in a row from number {index} on cannot be read; the last: {self.broken[place]}"
        )

    def load(self) -> ImageSet:
        """Return all pictures that can be read, center-cropped, in memory."""
        images, labels, sizes = [], [], set()
        for index, label in enumerate(self.source.labels):
            picture, found = self.read(index)
            if found == index:
                images.append(to_tensor(center_crop(picture, self.size)))
                labels.append(label)
                sizes.add(picture.size)
        return ImageSet(torch.stack(images), torch.tensor(labels), self.classes, tuple(sorted(sizes)))


def random_crop(picture: Image.Image, size: int, draws: np.random.Generator, *, min_crop: float = 0.8) -> Image.Image:
    """Return a random square of `picture`, `min_crop` to all of its short side, at `size` x `size` pixels.

    The short side is brought to a uniform whole number from `size` to ceil(size / min_crop): halved with a box filter while at least
    twice that, then bicubic. The square's place is uniform.

    Source:
        Diffusion Models Beat GANs, arXiv:2105.05233; ResTok, arXiv:2601.03955, with 0.8.
    """
    short = int(draws.integers(size, math.ceil(size / min_crop) + 1))
    while min(picture.size) >= 2 * short:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = short / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    top = int(draws.integers(picture.height - size + 1))
    left = int(draws.integers(picture.width - size + 1))
    return picture.crop((left, top, left + size, top + size))


def picture_views(picture: Image.Image, size: int, kind: str) -> Float[Tensor, "views 3 h w"]:
    """Return views of a picture in [-1, 1].

    "center" is the central crop; "flips" it and its mirror image; "ten_crop" the four corners (top left, top right, bottom left,
    bottom right) and the center of a central crop of int(1.1 size), then the same five places of its mirror image.

    Raises:
        ValueError: If the kind is unknown.

    Source:
        LlamaGen, arXiv:2406.06525; ResTok's code. Index 9 is not always the mirror of 4: where the margin is odd both centers
        have the same floored offset.
    """
    if kind in ("center", "flips"):
        image = to_tensor(center_crop(picture, size))
        return torch.stack([image, image.flip(-1)] if kind == "flips" else [image])
    if kind != "ten_crop":
        raise ValueError(f"views is {kind!r}, expected 'center', 'flips' or 'ten_crop'")
    large = int(size * 1.1)
    image = to_tensor(center_crop(picture, large))
    end, middle = large - size, round((large - size) / 2)
    places = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    crops = [x[:, top : top + size, left : left + size] for x in (image, image.flip(-1)) for top, left in places]
    return torch.stack(crops)
