"""Images with class labels behind one small interface: a sample is a pure function of (seed, epoch, index).

Letters: `b` batch, `c h w` image.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor

#: Larger pictures are refused: decoding is a known way to exhaust memory.
MAX_PIXELS = 64_000_000
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: What a picture may be, whatever its suffix. Pillow knows more: some of them run other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")

#: (index, epoch): which sample, and for the how-manieth time it is visited.
Sample = tuple[int, int]


class Dataset(abc.ABC):
    """What the training loop reads: samples by index, the same whatever was read before.

    `fingerprint` changes when the data change; caches and checkpoints are tied to it.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abc.abstractmethod
    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return samples, stacked; the augmentation of each is a function of (seed, epoch, index) alone."""

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Digits that change when the data change."""

    def content(self, *, is_whole: bool = False) -> str | None:
        """Return digits that change when what the fingerprint does not look into changes; None if it covers all.

        Args:
            is_whole: Read all of it; otherwise as `hiergen.data.content` does.
        """
        return None


@dataclasses.dataclass(frozen=True)
class ImageSet(Dataset):
    """Images that fit in memory.

    Attributes:
        images: `(n, c, h, w)`, float32 in [-1, 1].
        labels: `(n,)`, int64.
        classes: Name of each class.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]

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


def read_image(
    path: str | Path, *, data: bytes | None = None, max_pixels: int | None = None, mode: Literal["RGB", "RGBA"] = "RGB"
) -> Image.Image:
    """Return a picture as a PIL image, wholly decoded.

    Args:
        path: The file, or what `data` is called in errors.
        data: The bytes of an image file, in place of reading one.
        max_pixels: Larger pictures are refused, before they are decoded; None for `MAX_PIXELS`.
        mode: "RGB" drops what a picture says about transparency, "RGBA" keeps it.

    Raises:
        ValueError: If the file is missing, no image of `FORMATS`, truncated or larger than `max_pixels`; the file is named.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > most:
                    raise ValueError(f"{picture.width}x{picture.height} pixels, at most {most:,} are read")
                return picture.convert(mode)
    except UnidentifiedImageError as error:
        # Pillow's own message holds the address of an object.
        raise ValueError(f"image {str(path)!r} cannot be read: it is no {', '.join(FORMATS)} picture") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own message speaks of an attack.
        raise ValueError(f"image {str(path)!r} cannot be read: too many pixels, at most {most:,} are read") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from error


def center_crop(picture: Image.Image, size: int) -> Image.Image:
    """Return the central square of `picture` at `size` x `size` pixels.

    The ADM rule: halve with a box filter while the short side is at least twice `size`, then bicubic to a short side of `size`,
    then the central crop with floored offsets.

    Source:
        Diffusion Models Beat GANs, arXiv:2105.05233 (its preprocessing, which the field's ImageNet figures share).
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def to_tensor(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """Return an RGB picture as float32 in [-1, 1]: value k of 255 becomes k / 127.5 - 1."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1).div(127.5).sub(1)


def to_uint8(images: Float[Tensor, "*b c h w"]) -> Any:
    """Return images of [-1, 1] as uint8: clamped and rounded to the nearest of 256 values."""
    return images.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pictures(images: Float[Tensor, "b c h w"]) -> list[Image.Image]:
    """Return a batch of images of [-1, 1] as PIL images."""
    return [Image.fromarray(pixels) for pixels in to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()]


def list_images(folder: str | Path) -> list[Path]:
    """Return the pictures below `folder` in sorted order.

    Raises:
        ValueError: If the folder is missing or holds no picture.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"image folder {str(folder)!r} does not exist")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"image folder {str(folder)!r} holds no picture ({', '.join(SUFFIXES)})")
    return found


def load_folder(folder: str | Path, *, size: int) -> ImageSet:
    """Return a small folder of pictures, center-cropped, in memory. Sub-folders are classes; without any, one class.

    Raises:
        ValueError: If there is no picture, or one cannot be read (the file is named).
    """
    paths = list_images(folder)
    root = Path(folder)
    names = [path.relative_to(root).parts[0] if len(path.relative_to(root).parts) > 1 else "" for path in paths]
    classes = tuple(sorted(set(names)))
    images = torch.stack([to_tensor(center_crop(read_image(path), size)) for path in paths])
    return ImageSet(images, torch.tensor([classes.index(name) for name in names]), classes)
