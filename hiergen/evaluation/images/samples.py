"""Sets of images on disk: samples that others generated, read; samples that were generated here, written."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.data.images.files import image_size, list_images, read_image
from hiergen.evaluation.features.references import check_npz_images
from hiergen.evaluation.parts import Parts
from hiergen.files import atomic_path, check_writable, file_digest


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images that are there already.

    Attributes:
        count: Number of images.
        size: Height and width in pixels.
        digest: Digits that change when the images do.
        read: Maps indices to uint8 images `(b, 3, h, w)`.
    """

    count: int
    size: tuple[int, int]
    digest: str
    read: Callable[[range], Tensor]


def open_samples(source: str, num_images: int) -> Samples:
    """Return the images of an .npz file with `arr_0` (uint8, n h w 3) or of a folder of pictures.

    Args:
        source: The file or the folder.
        num_images: Number of images to take, the first ones; 0 takes all.

    Raises:
        ValueError: If the source is missing or no set of images of one size, or there are fewer images.
    """
    path = Path(source)
    samples = _open_npz(path) if path.suffix == ".npz" else _open_folder(path)
    if num_images < 0 or num_images > samples.count:
        raise ValueError(f"num_images is {num_images}, expected 0 (all) to {samples.count}, the number of samples")
    return dataclasses.replace(samples, count=num_images or samples.count)


def _open_npz(path: Path) -> Samples:
    with open_npz(path) as file:
        if "arr_0" not in file:
            raise ValueError(f"{str(path)!r} holds {', '.join(file.files) or 'nothing'}, expected samples as `arr_0`")
        images = read_array(file, "arr_0", path)
    check_npz_images(path, images)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return Samples(len(images), images.shape[1:3], file_digest(path)[:16], lambda keys: tensor[keys.start : keys.stop])


def _open_folder(path: Path) -> Samples:
    paths = list_images(path)
    sizes: dict[tuple[int, int], Path] = {}
    digest = hashlib.sha256()
    for file in paths:
        sizes.setdefault(image_size(file), file)
        digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
    if len(sizes) > 1:
        (one, first), (two, second) = list(sizes.items())[:2]
        raise ValueError(
            f"samples in {str(path)!r} have several sizes: {first.name} is {one[0]} x {one[1]}, {second.name} is {two[0]} x {two[1]}; "
            "they are evaluated as they are, so make them alike"
        )

    def read(keys: range) -> Tensor:
        pictures = [read_image(paths[key]) for key in keys]
        for key, picture in zip(keys, pictures, strict=True):
            # The head of a file may be wrong about how it is held.
            if picture.size != (width, height):
                raise ValueError(
                    f"sample {str(paths[key])!r} is {picture.width} x {picture.height} pixels when read, expected {width} x {height}"
                )
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)

    width, height = next(iter(sizes))
    return Samples(len(paths), (height, width), digest.hexdigest()[:16], read)


def write_samples(parts: Parts, out: Path, keep: str, count: int) -> None:
    """Write the images of all parts: samples.npz in ADM's layout, or a folder of PNG files; never all of them in memory."""
    if keep == "npz":
        write_adm_npz(out / "samples.npz", count, parts.each("images"))
    elif keep == "png":
        folder = check_writable(out / "samples")
        for index, image in enumerate(_one_by_one(parts)):
            with atomic_path(folder / f"{index:06d}.png") as temporary:
                Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(temporary)


def write_adm_npz(path: Path, count: int, batches: Iterable[Tensor]) -> None:
    """Write images as the evaluator of ADM reads them, an .npz with `arr_0` (uint8, n h w 3); never all of them in memory.

    Args:
        path: The file.
        count: Number of images of all batches.
        batches: At least one uint8 batch `(b, 3, h, w)`, all of one size.
    """
    batches = iter(batches)
    first = next(batches)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape[2:], first.shape[1])}
    # A fixed date: the same samples give the same bytes.
    entry = zipfile.ZipInfo("arr_0.npy")
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open(entry, "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for images in itertools.chain([first], batches):
            file.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())


def _one_by_one(parts: Parts) -> Iterator[Tensor]:
    for images in parts.each("images"):
        yield from images
