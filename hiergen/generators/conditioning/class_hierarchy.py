"""Classes as paths, coarse to fine: the levels of a tree of classes, and attributes that stand beside the tree.

    "Animals & Nature/animal-bird | noto"    levels "level 0": Animals & Nature, "level 1": Animals & Nature/animal-bird; attribute: noto

Letters: `n` classes, `l` levels.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hiergen.config import nearest

#: Number in a path of what the class does not have, and of what a condition leaves open.
ABSENT, OPEN = -1, -2

#: A number for each level: of a class at that level, `ABSENT` or `OPEN`.
Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ClassLevel:
    """One level of a hierarchy of classes.

    Attributes:
        names: Names of its classes.
        of_leaf: Number of the level's class of each leaf; None where the leaf has none.
        is_attribute: The level stands beside the tree: it neither has parents nor is one, and is left open by itself.
    """

    names: tuple[str, ...]
    of_leaf: tuple[int | None, ...]
    is_attribute: bool = False


@dataclasses.dataclass(frozen=True)
class ClassHierarchy:
    """A tree (or forest, with gaps) over the classes of a dataset, and attributes beside it.

    A condition is the number of a node. Nodes 0 to n - 1 are the classes, node n leaves everything open, and the nodes behind it are all
    paths of classes that are cut from their fine end, with every choice of attributes left open.

    Attributes:
        classes: Names of the leaves: the classes of the dataset, by label.
        levels: Levels, coarse to fine, attributes last. Where they leave two classes alike, a last level of the tree, the classes
            themselves, is added.

    Raises:
        ValueError: If a number is out of range, levels do not have one entry per class, a class of a level has two parents or a name
            occurs twice.
    """

    classes: tuple[str, ...]
    levels: tuple[ClassLevel, ...]

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes are {len(self.classes)}, expected at least one, of different names")
        for number, level in enumerate(self.levels):
            _check_level(number, level, len(self.classes))
        tree = [level for level in self.levels if not level.is_attribute]
        attributes = [level for level in self.levels if level.is_attribute]
        if len(set(zip(*(level.of_leaf for level in self.levels), strict=True))) < len(self.classes):
            tree.append(ClassLevel(self.classes, tuple(range(len(self.classes)))))
        object.__setattr__(self, "levels", (*tree, *attributes))
        _check_parents(tree)

    @classmethod
    def from_names(cls, classes: Sequence[str]) -> ClassHierarchy:
        """Return the hierarchy that names tell: parts between "/" are the levels of the tree, parts behind " | " are attributes.

        Raises:
            ValueError: If two names are equal.
        """
        trees = [name.split(" | ")[0].split("/") for name in classes]
        found = [
            _level([("/".join(parts[: depth + 1]) if depth < len(parts) else None) for parts in trees])
            for depth in range(max(map(len, trees), default=0))
        ]
        beside = [name.split(" | ")[1:] for name in classes]
        found += [
            _level([parts[index] if index < len(parts) else None for parts in beside], is_attribute=True)
            for index in range(max(map(len, beside), default=0))
        ]
        return cls(tuple(classes), tuple(found))

    @classmethod
    def from_table(cls, file: str | os.PathLike[str], classes: Sequence[str]) -> ClassHierarchy:
        """Return the hierarchy of a CSV file: a row per class, its name first, then its groups from coarse to fine; empty where it has none.

        The first row names the columns. A column whose name begins with "|" is an attribute. Rows may stand in any order.

        Args:
            file: The table, in UTF-8.
            classes: Names of the classes, by label.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a class has no row or two, a row names no class or is of another length, or a group has two parents.
        """
        with open(file, newline="", encoding="utf-8-sig") as opened:
            head, *rows = [row for row in csv.reader(opened) if any(row)] or [[]]
        where = f"the table of classes {str(file)!r}"
        if len(head) < 2:
            raise ValueError(f"{where} has {len(head)} columns, expected the class and at least one group")
        cells: dict[str, list[str]] = {}
        for row in rows:
            name = row[0].strip()
            if len(row) != len(head) or name in cells or name not in classes:
                hint = nearest(name, classes) if name not in classes else ""
                raise ValueError(f"{where} has the row {row}, expected a class, once, and {len(head) - 1} groups{hint}")
            cells[name] = [cell.strip() for cell in row[1:]]
        missing = [name for name in classes if name not in cells]
        if missing:
            raise ValueError(f"{where} has no row for {missing[0]!r}, expected one for each of {len(classes)} classes")
        found = [
            _level([cells[name][index] or None for name in classes], is_attribute=title.strip().startswith("|"))
            for index, title in enumerate(head[1:])
        ]
        # Attributes come last.
        return cls(tuple(classes), tuple(sorted(found, key=lambda level: level.is_attribute)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ClassHierarchy:
        """Return the hierarchy of what `to_json` returned.

        Raises:
            ValueError: If an entry is missing or unknown, or they do not fit together.
        """
        try:
            levels = [
                ClassLevel(**{**level, "names": tuple(level["names"]), "of_leaf": tuple(level["of_leaf"])})
                for level in values["levels"]
            ]
            return cls(tuple(values["classes"]), tuple(levels))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a class hierarchy has the entries classes and levels, a level names, of_leaf and is_attribute: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: `{"classes": [...], "levels": [{"names": [...], "of_leaf": [...], "is_attribute": false}, ...]}`."""
        return {
            "classes": list(self.classes),
            "levels": [
                {"names": list(x.names), "of_leaf": list(x.of_leaf), "is_attribute": x.is_attribute}
                for x in self.levels
            ],
        }

    @property
    def depth(self) -> int:
        """Number of levels of the tree, attributes not counted."""
        return sum(not level.is_attribute for level in self.levels)

    @functools.cached_property
    def nodes(self) -> tuple[Path, ...]:
        """Path of every node, by number."""
        leaves = [
            tuple(ABSENT if level.of_leaf[leaf] is None else int(level.of_leaf[leaf] or 0) for level in self.levels)
            for leaf in range(len(self.classes))
        ]
        found = dict.fromkeys((*leaves, (OPEN,) * len(self.levels)))
        choices = list(itertools.product((False, True), repeat=len(self.levels) - self.depth))
        for leaf in leaves:
            for depth in range(self.depth, -1, -1):
                tree = leaf[:depth] + (OPEN,) * (self.depth - depth)
                for choice in choices:
                    kept = zip(leaf[self.depth :], choice, strict=True)
                    found.setdefault((*tree, *(OPEN if is_open else number for number, is_open in kept)))
        return tuple(found)

    @functools.cached_property
    def _numbers(self) -> dict[Path, int]:
        return {path: number for number, path in enumerate(self.nodes)}

    @property
    def null(self) -> int:
        """The node that leaves everything open."""
        return len(self.classes)

    @functools.cached_property
    def parents(self) -> tuple[int, ...]:
        """Node of every node's parent: the finest level of the tree that it has left open, attributes kept; its last attribute where
        the tree is open already. The open node is its own parent."""
        return tuple(self._numbers[self._coarser(path)] for path in self.nodes)

    def _coarser(self, path: Path) -> Path:
        closed = [index for index, number in enumerate(path) if number not in (OPEN, ABSENT)]
        if not closed:
            return (OPEN,) * len(path)
        tree = [index for index in closed if index < self.depth]
        if not tree:
            return tuple(OPEN if index == closed[-1] else number for index, number in enumerate(path))
        # What is absent below the level that is left open is left open too.
        return tuple(OPEN if tree[-1] <= index < self.depth else number for index, number in enumerate(path))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Name of every node: the classes' own, and for the others the finest level of the tree and the attributes that they have."""
        return (*self.classes, *(self._describe(path) for path in self.nodes[len(self.classes) :]))

    def _describe(self, path: Path) -> str:
        closed = [(level, number) for level, number in zip(self.levels, path, strict=True) if number >= 0]
        tree = [level.names[number] for level, number in closed if not level.is_attribute][-1:]
        return " | ".join([*tree, *(level.names[number] for level, number in closed if level.is_attribute)])

    def find(self, name: str) -> int:
        """Return the node of a name, such as "Animals & Nature | noto"; "" leaves everything open.

        Raises:
            ValueError: If there is no such node, with the nearest names.
        """
        if name not in self.names:
            raise ValueError(f"no class, group or attribute is named {name!r}{nearest(name, list(self.names))}")
        return self.names.index(name)


def _level(names: Sequence[str | None], *, is_attribute: bool = False) -> ClassLevel:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for name in names if name is not None))}
    return ClassLevel(tuple(numbers), tuple(None if name is None else numbers[name] for name in names), is_attribute)


def _check_level(index: int, level: ClassLevel, num_classes: int) -> None:
    if len(level.of_leaf) != num_classes:
        raise ValueError(
            f"level {index} has {len(level.of_leaf)} entries in of_leaf, expected {num_classes}, one per class"
        )
    wrong = [x for x in level.of_leaf if x is not None and not 0 <= x < len(level.names)]
    if wrong:
        raise ValueError(f"of_leaf of level {index} holds {wrong[0]}, expected 0 to {len(level.names) - 1}, or none")


def _check_parents(tree: Sequence[ClassLevel]) -> None:
    for index, level in enumerate(tree):
        found: dict[int, tuple[int | None, ...]] = {}
        for leaf, number in enumerate(level.of_leaf):
            above = tuple(coarser.of_leaf[leaf] for coarser in tree[:index])
            if number is not None and found.setdefault(number, above) != above:
                raise ValueError(
                    f"{level.names[number]!r} of level {index} has two parents, expected one: is the level an attribute?"
                )
