"""Picture sources inside larger files: Hugging Face datasets on disk, and .npz archives of encoded images; tar files are `shards`.

Only image files, texts and numbers are ever decoded; nothing of an archive is unpickled or run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hiergen.data.files.content import Span
from hiergen.data.files.npz_files import open_npz, read_array
from hiergen.data.images.columns import IMAGE_NAMES, LABEL_NAMES, classes_of, find_column
from hiergen.data.images.files import read_image
from hiergen.data.images.on_disk import PictureSource
from hiergen.data.text.captions import Captions
from hiergen.environment import require


class HubPictures(PictureSource):
    """A Hugging Face dataset that `save_to_disk` wrote, with a column of images and one of labels: numbers or texts.

    Args:
        folder: The folder that `save_to_disk` wrote, of one split or of several.
        split: Name of the split to take, where there are several.
        image: Name of the column of images; "" takes "image", or what is an image or usually called so, and says which.
        label: Name of the column of labels; "" as for `image`.

    Raises:
        ValueError: If the folder is no such dataset, lacks the split or a column, has no row, or a label is missing or of no class.
        ImportError: If `datasets` is not installed.
    """

    def __init__(self, folder: str, *, split: str = "train", image: str = "", label: str = "") -> None:
        datasets = require("datasets", "images", "a Hugging Face dataset")
        try:
            table: Any = datasets.load_from_disk(folder)
        # Of damage and of tables without rows `datasets` makes errors of many classes.
        except Exception as error:
            raise ValueError(
                f"{folder!r} is no dataset that `save_to_disk` wrote, or one without rows: {error}"
            ) from error
        if isinstance(table, datasets.DatasetDict):
            if split not in table:
                raise ValueError(f"split is {split!r}, the dataset {folder!r} has {', '.join(table)}")
            table = table[split]
        if not len(table):
            raise ValueError(f"the dataset {folder!r} holds no row, expected at least one")
        features = table.features
        image = find_column(
            "image_column", image, features, IMAGE_NAMES, lambda kind: isinstance(kind, datasets.Image), folder
        )
        label = find_column(
            "label_column", label, features, LABEL_NAMES, lambda kind: isinstance(kind, datasets.ClassLabel), folder
        )
        self._folder, self._image, self._files = folder, image, table.cache_files
        names = getattr(features[label], "names", None)
        self.labels, self.classes = classes_of(table[label], names, f"the column {label!r} of {folder!r}")
        try:
            # As bytes: our own decoding refuses bombs and names what is broken.
            self._table = table.cast_column(image, datasets.Image(decode=False))
        # Arrow raises errors of many classes of its own.
        except Exception as error:
            raise ValueError(f"the column {image!r} of {folder!r} holds no images but {features[image]}") from error
        # Earlier versions knew these two columns alone.
        columns = "" if (image, label) == ("image", "label") else f"{image}\0{label}"
        self.fingerprint = hashlib.sha256(f"{table._fingerprint}{len(table)}{columns}".encode()).hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        entry = self._table[index][self._image] or {"bytes": None, "path": None}
        if entry["bytes"] is None and entry["path"] is None:
            raise ValueError(f"row {index} of the column {self._image!r} of {self._folder!r} holds no picture")
        if entry["bytes"] is None:
            return read_image(entry["path"])
        return read_image(f"{self._folder}[{index}]", data=entry["bytes"])

    def spans(self) -> list[Span]:
        return [Span(Path(file["filename"])) for file in self._files]


class NpzPictures(PictureSource):
    """An .npz archive of encoded images: `webp` (all their bytes), `offsets`, `labels`, `classes`, and what else it says of each.

    Picture k is `webp[offsets[k]:offsets[k + 1]]`; `classes` names the labels. Further arrays of numbers, such as `styles`, have their
    names beside them, such as `style_names`; `names` holds a name of each picture, and `texts` what it shows in words.

    Args:
        path: The file.
        label: The arrays of numbers that make the class together: "labels", "styles", or "labels+styles". The classes of several are
            the combinations that occur, in order, their names joined by " | ".

    Raises:
        ValueError: If the file is missing or damaged, lacks an array, or the arrays do not fit together.
    """

    def __init__(self, path: str | Path, *, label: str = "labels") -> None:
        self._path = path
        # Each array of numbers, and the one that names them.
        parts = {
            name: "classes" if name == "labels" else f"{name.removesuffix('s')}_names" for name in label.split("+")
        }
        wanted = ("webp", "offsets", *parts, *parts.values())
        with open_npz(path) as archive:
            missing = [name for name in wanted if name not in archive]
            if missing:
                raise ValueError(
                    f"{str(path)!r} is no archive of encoded images: it lacks {', '.join(missing)} and holds {', '.join(archive.files)}"
                )
            arrays = {name: read_array(archive, name, path) for name in wanted}
            names, texts = (read_array(archive, name, path) if name in archive else () for name in ("names", "texts"))
        for numbers, named in parts.items():
            _check_archive(path, arrays, numbers, named)
        self._bytes, self._offsets = arrays["webp"], arrays["offsets"]
        if len(parts) == 1:
            self.labels = [int(number) for number in arrays[label]]
            self.classes = tuple(str(name) for name in arrays[parts[label]])
        else:
            combined = list(zip(*(arrays[name].tolist() for name in parts), strict=True))
            found = {numbers: index for index, numbers in enumerate(sorted(set(combined)))}
            self.labels = [found[numbers] for numbers in combined]
            tables = [arrays[named] for named in parts.values()]
            self.classes = tuple(
                " | ".join(str(table[number]) for table, number in zip(tables, numbers, strict=True))
                for numbers in found
            )
        for kind, said in (("names", names), ("texts", texts)):
            if len(said) not in (0, len(self.labels)):
                raise ValueError(
                    f"{kind} of {str(path)!r} are {len(said)}, expected {len(self.labels)}, one per picture"
                )
        self.names = tuple(str(name) for name in names)
        self._texts = tuple((str(text),) for text in texts)
        digest = hashlib.sha256(self._bytes.tobytes())
        digest.update(np.asarray(self.labels, np.int64).tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        return read_image(f"{self._path}[{index}]", data=self._bytes[start:stop].tobytes())

    def captions(self) -> tuple[Captions, ...]:
        return self._texts


def _check_archive(path: str | Path, arrays: dict[str, np.ndarray], numbers: str, named: str) -> None:
    webp, offsets, labels, classes = (arrays[name] for name in ("webp", "offsets", numbers, named))
    kinds = (webp.dtype == np.uint8, offsets.dtype.kind in "iu", labels.dtype.kind in "iu")
    if not all(kinds) or any(array.ndim != 1 for array in arrays.values()) or len(offsets) != len(labels) + 1:
        shapes = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{str(path)!r} is no archive of encoded images: {shapes}; expected uint8 bytes, one offset more than integer {numbers}"
        )
    if (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[0] < 0 or offsets[-1] > len(webp):
        raise ValueError(f"offsets of {str(path)!r} leave its {len(webp):,} bytes or go backwards")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError(
            f"{numbers} of {str(path)!r} are {labels.min()} to {labels.max()}, expected 0 to {len(classes) - 1}: there are {len(classes)} {named}"
        )
