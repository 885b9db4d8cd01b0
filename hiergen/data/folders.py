"""Folders of files of any medium: which files there are, and the class of each by its sub-folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def list_files(folder: str | Path, suffixes: Sequence[str], *, kind: str, what: str) -> list[Path]:
    """Return the files of some suffixes below a folder, at any depth, in sorted order.

    Args:
        folder: Folder to look in.
        suffixes: The suffixes in lower case, each with its dot.
        kind: Kind of the folder in messages, e.g. "image".
        what: Name of one such file in messages, e.g. "picture".

    Raises:
        ValueError: If the folder is missing or holds no such file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{kind} folder {str(folder)!r} does not exist")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in suffixes)
    if not found:
        raise ValueError(f"{kind} folder {str(folder)!r} holds no {what} ({', '.join(suffixes)})")
    return found


def class_names(paths: Sequence[Path], folder: str | Path) -> list[str]:
    """Return the name of the sub-folder of `folder` that each path lies in; "" for what lies in no sub-folder."""
    relative = [path.relative_to(folder).parts for path in paths]
    return [parts[0] if len(parts) > 1 else "" for parts in relative]
