"""Captions of pictures: what a source says of each in words, and the file in which a cache of codes keeps them.

A folder of pictures may hold `captions.jsonl`, `metadata.jsonl` or `metadata.csv`, as Hugging Face's image folders do: a row per picture with
the columns `file_name`, its path below the folder, and `text`, a text or in JSON a list of them. Other pictures are described by templates
of their names and classes.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hiergen.config import nearest
from hiergen.files import atomic_path

#: Name of the file of a cache, and the names of those of a folder of pictures.
FILE = "captions.jsonl"
FOLDER_FILES = (FILE, "metadata.jsonl", "metadata.csv")

#: The texts of a picture, of which training draws one.
Captions = tuple[str, ...]


def read_folder_captions(folder: str | Path) -> dict[str, Captions]:
    """Return the captions of a folder's pictures by their paths below it; none where there is no such file.

    Raises:
        ValueError: If a row lacks a column or holds no text; the row is named.
    """
    path = next((path for name in FOLDER_FILES if (path := Path(folder) / name).is_file()), None)
    if path is None:
        return {}
    return {
        _entry(row, "file_name", f"row {number} of {str(path)!r}")[0]: _entry(
            row, "text", f"row {number} of {str(path)!r}"
        )
        for number, row in _rows(path)
    }


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from enumerate(csv.DictReader(file))
            return
        for number, line in enumerate(file):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"row {number} of {str(path)!r} is no JSON: {error}") from error
            yield number, row if isinstance(row, dict) else {}


def _entry(row: Mapping[str, Any], name: str, where: str) -> Captions:
    value = row.get(name)
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise ValueError(f"{where} has {name} {value!r}, expected a text")
    return tuple(found)


def describe_pictures(
    names: Sequence[str],
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    texts: Sequence[Captions] = (),
    colors: Sequence[str] = (),
) -> tuple[Captions, ...]:
    """Return texts made of what a source says of pictures, and of what is seen in them.

    Args:
        names: Name of each picture; empty where they have none. {name} is what stands behind the last slash, "_" and "-" as spaces.
        classes: Name of the class of each: {class}. Of "group/subgroup | attribute", {group}, {subgroup} and {attribute} are the parts.
        templates: Texts with these fields in braces.
        texts: Captions of each in the source, of which {text} is the first.
        colors: Main color of each: {color}. Where the next word is the same color, as in "{color} {name}" of a "blue heart", it is said once.

    Raises:
        ValueError: If a template has another field.
    """
    found = []
    for index, kind in enumerate(classes):
        path, _, attribute = kind.partition(" | ")
        group, *_, subgroup = (*path.split("/"), path.split("/")[-1])
        fields = {"class": kind, "group": group, "subgroup": subgroup, "attribute": attribute}
        if names:
            fields["name"] = names[index].rpartition("/")[2]
        if colors:
            fields["color"] = colors[index]
        if texts:
            fields["text"] = texts[index][0]
        fields = {name: text.replace("_", " ").replace("-", " ") for name, text in fields.items()}
        color = fields.get("color", "")
        try:
            made = (template.format(**fields).replace(f"{color} {color} ", f"{color} ") for template in templates)
            found.append(tuple(dict.fromkeys(made)))
        except (KeyError, IndexError, ValueError) as error:
            asked = str(error.args[0])
            raise ValueError(
                f"captions hold the field {asked!r}, expected some of {', '.join(fields)}{nearest(asked, fields)}"
            ) from error
    return tuple(found)


def write_captions(folder: str | Path, captions: Sequence[Captions]) -> None:
    """Write the captions of a cache's samples, in their order."""
    with atomic_path(Path(folder) / FILE) as temporary:
        temporary.write_text("".join(json.dumps({"text": list(texts)}) + "\n" for texts in captions), encoding="utf-8")


def read_captions(folder: str | Path, count: int) -> tuple[Captions, ...]:
    """Return the captions of a cache's samples.

    Args:
        folder: Folder of the cache.
        count: Number of its samples.

    Raises:
        ValueError: If there are none, or another number of them.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} holds no {FILE}: encode data that have captions, or describe them by --data.captions"
        )
    found = tuple(_entry(row, "text", f"row {number} of {str(path)!r}") for number, row in _rows(path))
    if len(found) != count:
        raise ValueError(f"{str(path)!r} has {len(found)} rows, expected {count}, one per sample of the cache")
    return found
