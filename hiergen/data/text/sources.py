"""Texts as lists of documents, in bytes: those that come with Python and scikit-learn, files, folders, Hugging Face data sets."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any

from hiergen.data.files.content import Span
from hiergen.data.files.folders import list_files
from hiergen.data.text.config import TextDataConfig
from hiergen.environment import require

#: Files that are read from folders; a file that is named by itself may be called anything.
SUFFIXES = (
    *(".txt", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".toml"),
    *(".py", ".c", ".h", ".cpp", ".rs", ".js", ".ts", ".java", ".go", ".sh", ".sql"),
)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Documents of a source.

    Attributes:
        names: Name of each.
        texts: Bytes of each.
        files: Files that they were read from; none for what comes with a package.
    """

    names: tuple[str, ...]
    texts: tuple[bytes, ...]
    files: tuple[Span, ...] = ()

    def take(self, numbers: range | list[int]) -> Documents:
        """Return some of the documents."""
        files = tuple(self.files[number] for number in numbers) if len(self.files) == len(self.names) else self.files
        return Documents(
            tuple(self.names[number] for number in numbers), tuple(self.texts[number] for number in numbers), files
        )


def open_documents(config: TextDataConfig) -> Documents:
    """Return the documents of a config: those of its split, in the order of their names. Empty ones are left out.

    Raises:
        ValueError: If the source does not exist, cannot be read, or has no text, or the split has none.
        ImportError: If a Hugging Face data set is asked for and `datasets` is not installed.
    """
    kind, colon, place = config.source.partition(":")
    if colon and kind == "hf":
        return _filled(_read_hub(place, config.split, config.column), config)
    readers = {"topics": _read_topics, "python": _read_python, "descriptions": _read_descriptions}
    found = readers[config.source]() if config.source in readers else _read_path(Path(config.source))
    found = _filled(found, config)
    if not config.hold_out:
        return found
    is_test = [number % config.hold_out == 0 for number in range(len(found.names))]
    chosen = [number for number, held in enumerate(is_test) if held == (config.split == "test")]
    if not chosen:
        raise ValueError(
            f"the split {config.split!r} of {config.source!r} holds no text: it has {len(found.names)}, of which every "
            f"{config.hold_out}th is held out; set hold_out to 0"
        )
    return found.take(chosen)


def _filled(found: Documents, config: TextDataConfig) -> Documents:
    kept = [number for number, text in enumerate(found.texts) if text]
    if not kept:
        raise ValueError(f"{config.source!r} holds no text, expected at least one that is not empty")
    return found.take(kept)


def _read_topics() -> Documents:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    names = tuple(sorted(topics))
    return Documents(names, tuple(topics[name].encode() for name in names))


def _read_python() -> Documents:
    folder = Path(os.__file__).parent
    files = sorted(folder.glob("*.py"))
    return Documents(tuple(file.name for file in files), tuple(file.read_bytes() for file in files))


def _read_descriptions() -> Documents:
    folder = Path(str(importlib.import_module("sklearn.datasets.descr").__path__[0]))
    files = sorted(folder.glob("*.rst"))
    return Documents(tuple(file.name for file in files), tuple(file.read_bytes() for file in files))


def _read_path(path: Path) -> Documents:
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        files, root = list_files(path, SUFFIXES, kind="text", what="text file"), path
    else:
        raise ValueError(
            f"source is {str(path)!r}, which is no file or folder, nor one of topics, python, descriptions or hf:NAME"
        )
    try:
        texts = tuple(file.read_bytes() for file in files)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    return Documents(tuple(str(file.relative_to(root)) for file in files), texts, tuple(Span(file) for file in files))


def _read_hub(place: str, split: str, column: str) -> Documents:
    datasets = require("datasets", "text", "a Hugging Face data set")
    try:
        if Path(place).is_dir():
            table: Any = datasets.load_from_disk(place)
            table = table[split] if isinstance(table, datasets.DatasetDict) else table
        else:
            table = datasets.load_dataset(place, split=split)
    # Of what is missing or damaged `datasets` makes errors of many classes.
    except Exception as error:
        raise ValueError(f"the data set {place!r} with split {split!r} cannot be read: {error}") from error
    if column not in table.column_names:
        raise ValueError(f"column is {column!r}, the data set {place!r} has {', '.join(table.column_names)}")
    texts = list(table[column])
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(f"the column {column!r} of {place!r} holds {type(wrong).__name__}, expected texts")
    return Documents(tuple(str(number) for number in range(len(texts))), tuple(text.encode() for text in texts))
