"""Picture sources inside larger files: WebDataset shards, Hugging Face datasets on disk, and .npz archives of encoded images.

Only image files and integers are ever decoded; nothing of an archive is unpickled or run.
"""

from __future__ import annotations

import glob
import hashlib
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hiergen.data.content import Span
from hiergen.data.images.files import SUFFIXES, read_image
from hiergen.data.images.on_disk import PictureSource
from hiergen.data.npz_files import open_npz, read_array
from hiergen.environment import require


class ShardPictures(PictureSource):
    """The pictures of WebDataset tar shards: files KEY.jpg (or another image suffix) with KEY.cls, an integer.

    Shards are indexed once by their headers; a picture is read by its offset, so any order costs the same. The fingerprint covers
    names and sizes of the shards, the `spans` what is in the pictures.

    Args:
        pattern: Shards, as a shell pattern or with one brace range: `train-{0000..0063}.tar`.

    Raises:
        ValueError: If no shard matches, one is missing or damaged, or a picture has no class.
    """

    def __init__(self, pattern: str) -> None:
        self._shards = _expand(pattern)
        self._places: list[tuple[int, str, int, int]] = []
        self.labels = []
        digest = hashlib.sha256()
        for number, shard in enumerate(self._shards):
            if not shard.is_file():
                raise ValueError(f"shard {str(shard)!r} does not exist")
            digest.update(f"{shard.name}\0{shard.stat().st_size}\0".encode())
            try:
                self._index(number, shard)
            except (tarfile.TarError, OSError) as error:
                raise ValueError(f"shard {str(shard)!r} is damaged: {error}") from error
        self.classes = tuple(str(label) for label in range(max(self.labels, default=-1) + 1))
        self.fingerprint = digest.hexdigest()[:16]

    def _index(self, number: int, shard: Path) -> None:
        images: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, int] = {}
        end = 0
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                key = f"{folder}/{key}"
                if not member.isreg():
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif suffix == "cls":
                    file = archive.extractfile(member)
                    text = file.read(32).decode("ascii", "replace").strip() if file else ""
                    if not text.isdigit():
                        raise ValueError(f"{member.name} in shard {str(shard)!r} is {text!r}, expected a class number")
                    labels[key] = int(text)
        with open(shard, "rb") as file:
            file.seek(end)
            # A shard that was cut between two files reads as a shorter one.
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"it ends at byte {end} without the mark of its end, so it was cut")
        for key, (name, offset, size) in images.items():
            if key not in labels:
                raise ValueError(f"{name} in shard {str(shard)!r} has no class: there is no .cls file of its name")
            self._places.append((number, name, offset, size))
            self.labels.append(labels[key])

    def read(self, index: int) -> Image.Image:
        number, name, offset, size = self._places[index]
        try:
            with open(self._shards[number], "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"shard {str(self._shards[number])!r} cannot be read: {error.strerror}") from error
        return read_image(f"{self._shards[number]}:{name}", data=data)

    def spans(self) -> list[Span]:
        return [Span(self._shards[number], offset, size) for number, _, offset, size in self._places]


class HubPictures(PictureSource):
    """A Hugging Face dataset that `save_to_disk` wrote, with a column of images and one of integer labels.

    Args:
        folder: The folder that `save_to_disk` wrote, of one split or of several.
        split: Name of the split to take, where there are several.
        image: Name of the column of images.
        label: Name of the column of labels.

    Raises:
        ValueError: If the folder is no such dataset, or lacks the split or a column.
        ImportError: If `datasets` is not installed.
    """

    def __init__(self, folder: str, *, split: str = "train", image: str = "image", label: str = "label") -> None:
        datasets = require("datasets", "images", "a Hugging Face dataset")
        try:
            table: Any = datasets.load_from_disk(folder)
        except (FileNotFoundError, OSError) as error:
            raise ValueError(f"{folder!r} is no dataset that `save_to_disk` wrote: {error}") from error
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(f"split is {split!r}, the dataset {folder!r} has {', '.join(table)}")
            table = table[split]
        missing = {image, label} - set(table.column_names)
        if missing:
            raise ValueError(
                f"the dataset {folder!r} has the columns {', '.join(table.column_names)}, expected also {', '.join(sorted(missing))}"
            )
        self._folder, self._image, self._files = folder, image, table.cache_files
        feature = table.features[label]
        self.labels = [int(value) for value in table[label]]
        names = getattr(feature, "names", None)
        self.classes = tuple(names) if names else tuple(str(k) for k in range(max(self.labels, default=-1) + 1))
        # As bytes: our own decoding refuses bombs and names what is broken.
        self._table = table.cast_column(image, datasets.Image(decode=False))
        self.fingerprint = hashlib.sha256(f"{table._fingerprint}{len(table)}".encode()).hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        entry = self._table[index][self._image]
        if entry["bytes"] is None:
            return read_image(entry["path"])
        return read_image(f"{self._folder}[{index}]", data=entry["bytes"])

    def spans(self) -> list[Span]:
        return [Span(Path(file["filename"])) for file in self._files]


class NpzPictures(PictureSource):
    """An .npz archive of encoded images: `webp` (all their bytes), `offsets`, `labels`, `classes`.

    Picture k is `webp[offsets[k]:offsets[k + 1]]`; `classes` names the labels.

    Raises:
        ValueError: If the file is missing or damaged, lacks an array, or the arrays do not fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        with open_npz(path) as archive:
            missing = [name for name in ("webp", "offsets", "labels", "classes") if name not in archive]
            if missing:
                raise ValueError(
                    f"{str(path)!r} is no archive of encoded images: it lacks {', '.join(missing)} and holds {', '.join(archive.files)}"
                )
            arrays = {name: read_array(archive, name, path) for name in ("webp", "offsets", "labels", "classes")}
        _check_archive(path, arrays)
        self._bytes, self._offsets = arrays["webp"], arrays["offsets"]
        self.labels = [int(label) for label in arrays["labels"]]
        self.classes = tuple(str(name) for name in arrays["classes"])
        digest = hashlib.sha256(self._bytes.tobytes())
        digest.update(arrays["labels"].astype(np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        return read_image(f"{self._path}[{index}]", data=self._bytes[start:stop].tobytes())


def _check_archive(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    webp, offsets, labels, classes = (arrays[name] for name in ("webp", "offsets", "labels", "classes"))
    kinds = (webp.dtype == np.uint8, offsets.dtype.kind in "iu", labels.dtype.kind in "iu")
    if not all(kinds) or any(array.ndim != 1 for array in arrays.values()) or len(offsets) != len(labels) + 1:
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{str(path)!r} is no archive of encoded images: {shapes}; expected uint8 bytes, one offset more than integer labels"
        )
    if (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[0] < 0 or offsets[-1] > len(webp):
        raise ValueError(f"offsets of {str(path)!r} leave its {len(webp):,} bytes or go backwards")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"labels of {str(path)!r} are {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}: there are {len(classes)} classes"
        )


def _expand(pattern: str) -> list[Path]:
    braces = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if braces:
        head, first, last, tail = braces.groups()
        return [Path(f"{head}{k:0{len(first)}d}{tail}") for k in range(int(first), int(last) + 1)]
    found = sorted(Path(path) for path in glob.glob(pattern))
    if not found:
        raise ValueError(f"no shard matches {pattern!r}")
    return found
