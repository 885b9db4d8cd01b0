"""The menus that choose a class: one for plain classes, one per level where classes are paths, each of which may be left open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hiergen.demo.library import DemoModel, Library
from hiergen.generators.conditioning.class_hierarchy import ABSENT, OPEN, ClassHierarchy

#: Names of the menus of a path: of its tree, by depth, and of the attributes beside it.
_TREE = {1: ("Class",), 2: ("Group", "Subgroup"), 3: ("Group", "Subgroup", "Class")}
#: What a menu calls a level that is left open.
ANY = "any"


def menu_names(entry: DemoModel) -> list[str]:
    """Return the names of the menus that choose a class of a model."""
    hierarchy = entry.hierarchy
    if hierarchy is None:
        return ["Class"]
    tree = _TREE.get(hierarchy.depth) or [f"Level {number + 1}" for number in range(hierarchy.depth)]
    beside = len(hierarchy.levels) - hierarchy.depth
    return [*tree, *(("Style",) if beside == 1 else [f"Style {number + 1}" for number in range(beside)])]


def menu_choices(entry: DemoModel, chosen: Sequence[int | None]) -> list[tuple[list[tuple[str, int]], int]]:
    """Return the words and numbers of each menu, and the number that is chosen there.

    Args:
        entry: Model.
        chosen: What the menus hold now; what a menu no longer offers, because of those before it, is left open.
    """
    hierarchy = entry.hierarchy
    if hierarchy is None:
        first = chosen[0] if chosen and chosen[0] is not None else -1
        return [(entry.choices(), first if 0 <= first < entry.num_classes else min(3, entry.num_classes - 1))]
    menus: list[tuple[list[tuple[str, int]], int]] = []
    leaves = _leaves(hierarchy)
    for index, level in enumerate(hierarchy.levels):
        # Where the tree is more than one level deep, a name repeats those above it.
        offered = [
            (level.names[number].rpartition("/")[2], number)
            for number in sorted({leaf[index] for leaf in leaves} - {ABSENT})
        ]
        wanted = chosen[index] if index < len(chosen) else OPEN
        value = wanted if wanted is not None and wanted in {number for _, number in offered} else OPEN
        menus.append(([(ANY, OPEN), *offered], value))
        leaves = [leaf for leaf in leaves if value in (OPEN, leaf[index])]
    return menus


def menu_label(entry: DemoModel, chosen: Sequence[int | None]) -> int:
    """Return the label that the menus choose: a class, or with a hierarchy any node of it.

    Raises:
        ValueError: If the hierarchy has no such path.
    """
    hierarchy = entry.hierarchy
    if hierarchy is None:
        return int(chosen[0] or 0)
    wanted = [OPEN if number is None else int(number) for number in chosen[: len(hierarchy.levels)]]
    closed = [index for index, number in enumerate(wanted) if number != OPEN]
    deepest = max((index for index in closed if index < hierarchy.depth), default=-1)
    for leaf in _leaves(hierarchy):
        if all(leaf[index] == wanted[index] for index in closed):
            # What lies above a chosen level of the tree is given by it.
            tree = [number if index <= deepest else OPEN for index, number in enumerate(leaf[: hierarchy.depth])]
            return hierarchy.nodes.index((*tree, *wanted[hierarchy.depth :]))
    names = [hierarchy.levels[index].names[wanted[index]] for index in closed]
    raise ValueError(f"there is no class of {' and '.join(map(repr, names))}, expected names that occur together")


def menu_path(entry: DemoModel, label: int) -> list[int]:
    """Return what the menus hold for a label."""
    return [label] if entry.hierarchy is None else [OPEN if x == ABSENT else x for x in entry.hierarchy.nodes[label]]


def _leaves(hierarchy: ClassHierarchy) -> list[tuple[int, ...]]:
    return list(hierarchy.nodes[: len(hierarchy.classes)])


def add_menus(library: Library, titles: Sequence[str], *, name: str, path: Sequence[int]) -> list[Any]:
    """Add as many menus as the classes of any of some models need to the page that is being built."""
    import gradio as gr

    count = max(len(menu_names(library.get(title))) for title in titles)
    with gr.Row():
        return [
            gr.Dropdown(**values, elem_id=f"{name}-class{number or ''}", min_width=150)
            for number, values in enumerate(_values(library.get(titles[0]), path, count))
        ]


def show_menus(entry: DemoModel, chosen: Sequence[int | None], count: int) -> list[Any]:
    """Return the update of each of `count` menus for a model and what is chosen."""
    import gradio as gr

    return [gr.Dropdown(**values) for values in _values(entry, chosen, count)]


def _values(entry: DemoModel, chosen: Sequence[int | None], count: int) -> list[dict[str, Any]]:
    """Return the arguments of each menu; those that a model has no use for are hidden."""
    names, menus = menu_names(entry), menu_choices(entry, chosen)
    shown = [
        {"choices": choices, "value": value, "label": name, "visible": True}
        for name, (choices, value) in zip(names, menus, strict=True)
    ]
    return [*shown, *({"choices": [(ANY, OPEN)], "value": OPEN, "visible": False} for _ in range(count - len(shown)))]
