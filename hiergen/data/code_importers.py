"""Caches of token pyramids from the files that ResTok's own program writes: two small .npy files per image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hiergen.data.codes import CodeSet, write_codes
from hiergen.pyramid import LevelSpec, TokenPyramid


def import_npy_codes(
    codes: str | Path,
    labels: str | Path,
    folder: str | Path,
    *,
    specs: tuple[LevelSpec, ...],
    classes: Sequence[str] | None = None,
) -> CodeSet:
    """Write a cache of codes from `CODES/{index}.npy`, int64 (variants, tokens), and `LABELS/{index}.npy`, an int64 scalar.

    Args:
        codes: Folder such as `imagenet256_codes`; indices run from 0 without a gap.
        labels: Folder such as `imagenet256_labels`.
        folder: Where the cache goes.
        specs: Levels of the tokenizer that made the codes.
        classes: Name of each class; None takes their numbers.

    Raises:
        ValueError: If a file is missing or holds something else; it is named.

    Source:
        ResTok's code (arXiv:2601.03955), which draws one of ten crops at each visit, as `CodeSet` does.
    """
    root, label_root = Path(codes), Path(labels)
    count = sum(1 for _ in root.glob("*.npy"))
    if count == 0:
        raise ValueError(f"{str(codes)!r} holds no .npy files of codes")
    tokens = sum(spec.num_tokens for spec in specs)
    vocab = min(spec.vocab_size or 0 for spec in specs)
    all_labels = torch.tensor([int(_read(label_root / f"{index}.npy", ())) for index in range(count)])

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], Tensor]:
        rows = np.stack([_read(root / f"{index}.npy", (None, tokens)) for index in range(start, stop)])
        if rows.min() < 0 or rows.max() >= vocab:
            raise ValueError(
                f"codes {start} to {stop - 1} run from {rows.min()} to {rows.max()}, expected 0 to {vocab - 1}"
            )
        ids = torch.from_numpy(rows)
        return [TokenPyramid.split(ids[:, k], specs) for k in range(ids.shape[1])], all_labels[start:stop]

    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(int(all_labels.max()) + 1))
    digest = hashlib.sha256(all_labels.numpy().tobytes())
    digest.update(f"{count} {specs}".encode() + _read(root / "0.npy", (None, tokens)).tobytes())
    return write_codes(folder, encode, num_samples=count, classes=names, source=f"npy-{digest.hexdigest()[:12]}")


def find_npy_folders(root: str | Path) -> tuple[Path, Path]:
    """Return the folders of codes and of labels below the folder that ResTok's program wrote: `<name>_codes` and `<name>_labels`.

    Raises:
        ValueError: If there is not exactly one of each.
    """
    found = []
    for ending in ("codes", "labels"):
        folders = sorted(path for path in Path(root).glob(f"*_{ending}") if path.is_dir())
        if len(folders) != 1:
            names = ", ".join(path.name for path in folders) or "none"
            raise ValueError(f"{str(root)!r} holds {names}, expected one folder named *_{ending}")
        found.append(folders[0])
    return found[0], found[1]


def _read(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    fits = values.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, values.shape, strict=False))
    if not fits or values.dtype.kind not in "iu":
        raise ValueError(f"{str(path)!r} holds {values.dtype} {values.shape}, expected integers {shape}")
    return values.astype(np.int64)
