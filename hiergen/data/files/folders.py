"""Folders of files of any medium: which files there are, the class of each by its sub-folder, and the order of classes."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

#: Files and folders that systems and their programs put among a user's own, in lower case. Names that begin with a dot are hidden anyway.
SYSTEM_NAMES = frozenset(
    (
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    )
)


def is_hidden(name: str) -> bool:
    """Return whether a path, relative to what the user named, is hidden or a system's own, or lies in what is."""
    return any(
        (part.startswith(".") and part not in (".", "..")) or part.lower() in SYSTEM_NAMES for part in name.split("/")
    )


def list_files(folder: str | Path, suffixes: Sequence[str], *, kind: str, what: str) -> list[Path]:
    """Return the files of some suffixes below a folder, at any depth, in sorted order.

    What is hidden or a system's own is left out, and links to folders are not followed. A warning, once per folder, counts and names
    what was left out.

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
    found, others, hidden, links = [], [], [], []
    for place, folders, files in os.walk(root):
        here = Path(place)
        links += [_below(here / one, root) for one in folders if (here / one).is_symlink() and not is_hidden(one)]
        hidden += [_below(here / one, root) for one in folders if is_hidden(one)]
        folders[:] = [one for one in folders if not is_hidden(one)]
        for one in files:
            is_wanted = Path(one).suffix.lower() in suffixes
            if is_hidden(one):
                # A system's notes are no news; a hidden picture may be.
                hidden += [_below(here / one, root)] if is_wanted else []
            elif is_wanted:
                found.append(here / one)
            else:
                others.append(_below(here / one, root))
    parts = (
        (others, f"no {what}"),
        (hidden, "hidden or a system's own"),
        (links, "a link to a folder"),
    )
    left_out = "; ".join(f"{why}: {len(names)} ({first_names(sorted(names))})" for names, why in parts if names)
    if not found:
        there = f"; left out what is {left_out}" if left_out else ""
        raise ValueError(f"{kind} folder {str(folder)!r} holds no {what} ({', '.join(suffixes)}){there}")
    if left_out:
        warn_once(f"{kind} folder {str(folder)!r}: left out what is {left_out}")
    return sorted(found)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the first time that it comes: a source is opened more than once."""
    logger.warning(message)


def first_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first few names for a message, and an ellipsis if there are more."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def class_names(paths: Sequence[Path], folder: str | Path) -> list[str]:
    """Return the name of the sub-folder of `folder` that each path lies in; "" for what lies in no sub-folder."""
    relative = [path.relative_to(folder).parts for path in paths]
    return [parts[0] if len(parts) > 1 else "" for parts in relative]


def class_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once in natural order: runs of digits count as numbers, so that "2" comes before "10"."""
    # Padded, a number stands where its first digit stood among other characters; the name itself decides between "1" and "01".
    return tuple(sorted(set(names), key=lambda name: (re.sub("[0-9]+", lambda run: run[0].zfill(255), name), name)))


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
