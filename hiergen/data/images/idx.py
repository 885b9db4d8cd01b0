"""The files of MNIST and of its successors in the same form (Fashion-MNIST, KMNIST): grey pictures and labels."""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
from PIL import Image

from hiergen.data.images.on_disk import PictureSource

#: How file names begin, by split.
_STEMS = {"train": "train", "test": "t10k"}
#: Largest number of bytes that a header may claim; more is refused before it is read.
_MAX_BYTES = 2**31


class IdxPictures(PictureSource):
    """Grey pictures in two files, `train-images-idx3-ubyte` and `train-labels-idx1-ubyte` (test: `t10k-...`), plain or `.gz`.

    Args:
        folder: Holds the files.
        split: "train" or "test".

    Raises:
        ValueError: If a file is missing, damaged or no such file, or the two differ in number.

    Source:
        The IDX format of MNIST: two zero bytes, 8 for unsigned bytes, the number of sizes, the sizes (big-endian), the bytes.
    """

    def __init__(self, folder: str | Path, *, split: str = "train") -> None:
        if split not in _STEMS:
            raise ValueError(f"split is {split!r}, expected one of {tuple(_STEMS)}")
        stem = _STEMS[split]
        self._images = _read_idx(Path(folder), f"{stem}-images-idx3-ubyte", ndim=3)
        labels = _read_idx(Path(folder), f"{stem}-labels-idx1-ubyte", ndim=1)
        if len(labels) != len(self._images):
            raise ValueError(f"{str(folder)!r} holds {len(self._images)} pictures and {len(labels)} labels")
        self.labels = labels.tolist()
        self.classes = tuple(str(k) for k in range(max(self.labels, default=-1) + 1))
        digest = hashlib.sha256(self._images.tobytes())
        digest.update(labels.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


def _read_idx(folder: Path, name: str, *, ndim: int) -> np.ndarray:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    try:
        with gzip.open(path) if path == packed else open(path, "rb") as file:
            head = file.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:4] != bytes((0, 0, 8, ndim)):
                raise ValueError(f"not unsigned bytes in {ndim} dimensions")
            shape = np.frombuffer(head, ">u4", offset=4).tolist()
            count = math.prod(shape)
            if count > _MAX_BYTES:
                raise ValueError(f"its header claims {count:,} bytes, at most {_MAX_BYTES:,} are read")
            data = file.read(count + 1)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    if len(data) != count:
        raise ValueError(f"{str(path)!r} cannot be read: its header promises {count:,} bytes, it holds {len(data):,}")
    return np.frombuffer(data, np.uint8).reshape(shape)
