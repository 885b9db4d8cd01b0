"""Images with class labels that were decoded once and are held in memory: `ImageSet`. Those that stay on disk are in `on_disk`.

Letters: `n` images, `c h w` image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from hiergen.data.dataset import Dataset, Sample
from hiergen.data.files.folders import class_names, class_order
from hiergen.data.images.files import list_images, read_image
from hiergen.data.images.pixels import center_crop, to_tensor


@dataclasses.dataclass(frozen=True)
class ImageSet(Dataset):
    """Images that fit in memory.

    Attributes:
        images: `(n, c, h, w)`, float32 in [-1, 1].
        labels: `(n,)`, int64.
        classes: Name of each class.
        sizes: Every width and height that the pictures had before they were cropped, once; none where nobody looked.
    """

    unit = "image"

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return self.images.shape[0]

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        chosen = torch.tensor([index for index, _ in samples])
        return {"image": self.images[chosen], "label": self.labels[chosen]}

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def load_folder(folder: str | Path, *, size: int) -> ImageSet:
    """Return a small folder of pictures, center-cropped, in memory. Sub-folders are classes; without any, one class.

    Raises:
        ValueError: If there is no picture, or one cannot be read (the file is named).
    """
    paths = list_images(folder)
    names = class_names(paths, folder)
    classes = class_order(names)
    images, sizes = [], set()
    for path in paths:
        picture = read_image(path)
        images.append(to_tensor(center_crop(picture, size)))
        sizes.add(picture.size)
    labels = torch.tensor([classes.index(name) for name in names])
    return ImageSet(torch.stack(images), labels, classes, tuple(sorted(sizes)))
