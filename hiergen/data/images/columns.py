"""Columns of tables with images: which one holds what, and classes from whatever labels are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hiergen.data.files.folders import class_order, warn_once

#: Usual names of columns, in lower case; of several, the first is taken.
IMAGE_NAMES = ("image", "img", "picture", "photo", "images", "jpg", "jpeg", "png", "webp")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target", "cls")
#: A class number from here on is a mistake: every class below it has a name in memory.
MAX_CLASSES = 1_000_000


def find_column(
    field: str, wanted: str, features: Mapping[str, Any], usual: Sequence[str], fits: Callable[[Any], bool], place: str
) -> str:
    """Return the name of a column: the wanted one; else the first of `usual`; else, with a warning, one that fits or is called usually.

    Args:
        field: Field by which a user names the column, e.g. "image_column".
        wanted: Name that the user gave; "" to look for one.
        features: Kind of each column by its name.
        usual: Usual names, in lower case.
        fits: Whether a column of a kind holds what is looked for.
        place: Name of the table in messages.

    Raises:
        ValueError: If there is no such column.
    """
    wanted = wanted or (usual[0] if usual[0] in features else "")
    if wanted in features:
        return wanted
    fitting = [name for name, kind in features.items() if fits(kind)]
    called = [name for known in usual for name in features if name.lower() == known]
    both = [name for name in called if name in fitting]
    found = both or (fitting if len(fitting) == 1 else called)
    if wanted or not found:
        missing = wanted or usual[0]
        raise ValueError(
            f"the dataset {place!r} has the columns {', '.join(features)}, expected also {missing}; {field} names another one"
        )
    others = [name for name in dict.fromkeys((*called, *fitting)) if name != found[0]]
    beside = f", not from {', '.join(others)}" if others else ""
    warn_once(f"the dataset {place!r} is read from the column {found[0]!r}{beside}: {field} names another one")
    return found[0]


def classes_of(labels: Iterable[Any], names: Sequence[str] | None, what: str) -> tuple[list[int], tuple[str, ...]]:
    """Return the class of each row and the name of each class.

    Whole numbers are classes, and so are yes and no (two classes) and texts (sorted, runs of digits as numbers).

    Args:
        labels: Label of each row.
        names: Name of each class where the table says it.
        what: Name of the column in messages, e.g. "the column 'label' of 'set'".

    Raises:
        ValueError: If a label is missing, negative, or nothing of these; the row is named.
    """
    labels = list(labels)
    for row, label in enumerate(labels):
        # NaN is how tables of floats say that there is none.
        if label is None or label != label:
            raise ValueError(f"row {row} of {what} holds no label")
    if labels and names is None:
        for kind in (str, bool):
            if all(isinstance(label, kind) for label in labels):
                order = class_order(labels) if kind is str else (False, True)
                numbers = {name: number for number, name in enumerate(order)}
                return [numbers[label] for label in labels], tuple(str(name) for name in order)
    most = (MAX_CLASSES if names is None else len(names)) - 1
    for row, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int | float) or label != label // 1:
            raise ValueError(f"row {row} of {what} is {label!r}, expected whole numbers from 0 on, or texts alone")
        if not 0 <= label <= most:
            meaning = ", which stands for no label" if label == -1 else ""
            raise ValueError(f"row {row} of {what} is {label}{meaning}, expected 0 to {most}")
    found = [int(label) for label in labels]
    return found, tuple(names) if names else tuple(str(number) for number in range(max(found, default=-1) + 1))
