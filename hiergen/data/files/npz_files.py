"""Arrays of .npz files that others wrote: nothing is unpickled, and whatever is wrong with a file is a ValueError that names it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

#: What numpy and zipfile raise for a file that was cut or changed, or compressed in a way that they do not know (a RuntimeError).
_DAMAGE = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    KeyError,
    OverflowError,
    MemoryError,
    SyntaxError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def open_npz(path: str | Path) -> Any:
    """Return an open .npz file, pickles refused.

    Raises:
        ValueError: If it is missing or no .npz.
    """
    if not Path(path).is_file():
        raise ValueError(f"{str(path)!r} does not exist, expected an .npz file")
    with open(path, "rb") as head:
        if head.read(6) == b"\x93NUMPY":
            raise ValueError(f"{str(path)!r} is a single array, expected an .npz file")
    try:
        # numpy leaves a file open that it finds to be no archive.
        with zipfile.ZipFile(path):
            pass
        return np.load(path, allow_pickle=False)
    except _DAMAGE as error:
        raise ValueError(f"{str(path)!r} is no .npz file, or is damaged: {error}") from error


def read_array(file: Any, name: str, path: str | Path) -> np.ndarray:
    """Return one array of an open .npz file.

    Raises:
        ValueError: If it is damaged, or holds Python objects, which would have to be unpickled.
    """
    try:
        return np.asarray(file[name])
    except _DAMAGE as error:
        what = (
            "holds pickled Python objects, expected numbers" if "allow_pickle" in str(error) else f"is damaged: {error}"
        )
        raise ValueError(f"{name} of {str(path)!r} {what}") from error
