"""Names of classes: what a generator's config says of them, and how the name that a user writes becomes a class's number."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hiergen.config import nearest
from hiergen.generators.base import Generator
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.telling import counted

#: Most characters of a name in the name of a file, and beside a picture.
FILE_LENGTH, TITLE_LENGTH = 48, 32


class NamedClasses:
    """Gives a pipeline the names of its generator's classes, as diffusers' DiT has them."""

    generator: Generator

    @property
    def class_names(self) -> dict[int, str]:
        """The name of each class by its number, as the generator's config has them in `id2label`; synonyms are separated by commas."""
        return class_names(self.generator)

    @property
    def labels(self) -> dict[str, int]:
        """The number of each class by its names, in alphabetical order; a name that several classes have is left out."""
        named: dict[str, set[int]] = {}
        for label, name in self.class_names.items():
            for synonym in _synonyms(name):
                named.setdefault(synonym, set()).add(label)
        return {name: next(iter(found)) for name, found in sorted(named.items()) if len(found) == 1}

    def get_label_ids(self, label: str | Sequence[Any]) -> list[int]:
        """Return the numbers of classes by their names.

        Args:
            label: One name or several: all of what `id2label` has for a class, or one of its synonyms, in capitals or not.

        Raises:
            ValueError: If a name is no text, is unknown, with the nearest ones, or several classes have it.
        """
        asked = [label] if isinstance(label, str) else list(label)
        for name in asked:
            if not isinstance(name, str):
                raise ValueError(f"label holds {name!r} of type {type(name).__name__}, expected the name of a class")
        return [find_class(self.class_names, name, argument="label") for name in asked]


def class_names(generator: Any) -> dict[int, str]:
    """Return the names that a generator's config has, by the numbers of the classes; classes without a name are left out.

    With a class hierarchy these are the names of all nodes; the classes are the first of them.
    """
    if generator.config.get("class_hierarchy"):
        return dict(enumerate(ClassHierarchy.from_json(generator.config["class_hierarchy"]).names))
    stored: Mapping[str, str] = generator.config.get("id2label") or {}
    return {int(label): " ".join(name.split()) for label, name in stored.items() if name.strip()}


def find_class(names: Mapping[int, str], text: str, *, argument: str = "class_labels") -> int:
    """Return the number of the class that has a name, which an `argument` gave: see `NamedClasses.get_label_ids`.

    Raises:
        ValueError: If no class has it, with the nearest names, or several have.
    """
    found = matches(names, text)
    if len(found) == 1:
        return found[0]
    holds = f"{argument} holds {text!r}"
    if found:
        which = " and ".join(f"{label} ({names[label]})" for label in found)
        raise ValueError(f"{holds}, which is the name of several classes: {which}; give the number")
    if not names:
        raise ValueError(f"{holds} of type str, expected integers: the classes of this generator have no names")
    known = {synonym for name in names.values() for synonym in _synonyms(name)}
    raise ValueError(f"{holds}, which is the name of no class{nearest(text, known)}")


def matches(names: Mapping[int, str], text: str) -> list[int]:
    """Return the numbers of the classes that a name may mean; whole names go before synonyms, equal capitals before others."""
    wanted = " ".join(text.split())
    for parts in (lambda name: [name], _synonyms):
        for fold in (str, str.casefold):
            found = [label for label, name in names.items() if fold(wanted) in map(fold, parts(name))]
            if found:
                return found
    return []


def number_classes(class_labels: Any, names: Mapping[int, str]) -> Any:
    """Return labels with each name replaced by the number of its class; what is no text is left as it is.

    Raises:
        ValueError: If a name is unknown or ambiguous.
    """
    values = class_labels
    if isinstance(values, np.ndarray) and values.dtype.kind in "OU" and values.ndim <= 1:
        values = values.tolist()
    if isinstance(values, str):
        return find_class(names, values)
    if not isinstance(values, Iterable) or isinstance(values, Tensor | np.ndarray | bytes | Mapping):
        return values
    return [find_class(names, value) if isinstance(value, str) else value for value in values]


def short_name(names: Mapping[int, str], label: int, otherwise: str) -> str:
    """Return the first synonym of a class's name, or another text where it has none."""
    return _synonyms(names[label])[0] if label in names else otherwise


def file_names(names: Mapping[int, str], labels: Sequence[int]) -> list[str]:
    """Return a name for the files of each class: letters, digits, "-" and "_" alone, and different on every file system.

    Classes that have no name, and those whose names would become one, are told apart by their numbers.
    """
    stems = []
    for label in labels:
        plain = unicodedata.normalize("NFKC", short_name(names, label, ""))
        stems.append(re.sub(r"\W+", "-", plain)[:FILE_LENGTH].strip("-"))
    counts = Counter(map(_folded, stems))
    numbers = [f"class{label:04d}" for label in labels]
    # A name that looks like a number might be another class's.
    shared = [not stem or counts[_folded(stem)] > 1 or bool(re.match(r"class\d", _folded(stem))) for stem in stems]
    return [
        f"{number}-{stem}".rstrip("-") if is_shared else stem
        for stem, number, is_shared in zip(stems, numbers, shared, strict=True)
    ]


def titles(names: Mapping[int, str], labels: Sequence[int]) -> list[str]:
    """Return what is written beside the pictures of each class: its short name, with its number where some would be equal."""
    found = [short_name(names, label, str(label)) for label in labels]
    found = [name if len(name) <= TITLE_LENGTH else f"{name[: TITLE_LENGTH - 1]}…" for name in found]
    is_plain = len(set(found)) == len(found)
    return [name if is_plain else f"{name} ({label})" for name, label in zip(found, labels, strict=True)]


def list_names(names: Mapping[int, str], most: int = 5) -> str:
    """Return how many names there are and the first of them, for a line of text: "3 classes: airplanes, Faces, Motorbikes"."""
    shown = [short_name(names, label, "") for label in sorted(names)[:most]]
    return f"{counted(len(names), 'class')}: {', '.join(shown)}" + (", ..." if len(names) > most else "")


def _synonyms(name: str) -> list[str]:
    """Return the parts of a name between its commas; the name itself where it is nothing but commas."""
    return [part for piece in name.split(",") if (part := piece.strip())] or [name]


def _folded(stem: str) -> str:
    """Return what file systems that know no capitals, or write accents as they like, may make of a name."""
    return unicodedata.normalize("NFKC", stem.casefold())
