"""How a visitor says what is to be made: by menus of classes, or in words where the model was trained on texts.

There is one menu for plain classes, and one per level where classes are paths, each of which may be left open.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hiergen.demo.library import DemoModel, Library
from hiergen.demo.requests import MAX_PROMPT
from hiergen.generators.conditioning.class_hierarchy import ABSENT, OPEN, ClassHierarchy

#: Names of the menus of a path: of its tree, by depth, and of the attributes beside it.
_TREE = {1: ("Class",), 2: ("Group", "Subgroup"), 3: ("Group", "Subgroup", "Class")}
#: What a menu calls a level that is left open.
ANY = "any"
#: What stands in an empty field for words.
INVITATION = "What do you want to see?"


def menu_names(entry: DemoModel) -> list[str]:
    """Return the names of the menus that choose a class of a model; none where it takes words."""
    if entry.takes_words:
        return []
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
    if entry.takes_words:
        return []
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
    """Return the label that the menus choose: a class, or with a hierarchy any node of it; 0 where there are no menus.

    Raises:
        ValueError: If the hierarchy has no such path.
    """
    hierarchy = entry.hierarchy
    if hierarchy is None:
        return int(chosen[0] or 0) if chosen else 0
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
    if entry.takes_words:
        return []
    return [label] if entry.hierarchy is None else [OPEN if x == ABSENT else x for x in entry.hierarchy.nodes[label]]


def _leaves(hierarchy: ClassHierarchy) -> list[tuple[int, ...]]:
    return list(hierarchy.nodes[: len(hierarchy.classes)])


@dataclasses.dataclass(frozen=True)
class Asking:
    """The parts of a tab in which a visitor says what is to be made, as gradio's components.

    Attributes:
        row: What holds the menus.
        menus: As many menus as the classes of any of the tab's models need.
        words: What is shown in their place where a model takes words: the three that follow.
        prompt: Field for the words.
        examples: Words to try.
        negative: Field for what is to be avoided.
    """

    row: Any
    menus: list[Any]
    words: Any
    prompt: Any
    examples: Any
    negative: Any

    @property
    def inputs(self) -> list[Any]:
        """What a function is given of it, for `read`."""
        return [*self.menus, self.prompt, self.negative]

    @property
    def outputs(self) -> list[Any]:
        """What `show` updates."""
        return [self.row, *self.menus, self.words, self.prompt, self.examples, self.negative]

    def read(self, entry: DemoModel, values: Sequence[Any]) -> dict[str, Any]:
        """Return fields of a request from the values of `inputs`.

        Raises:
            ValueError: If the model has no such class.
        """
        *chosen, prompt, negative = values
        if entry.takes_words:
            return {"prompt": str(prompt or "").strip(), "negative_prompt": str(negative or "").strip()}
        return {"label": menu_label(entry, chosen)}

    def show(self, entry: DemoModel, chosen: Mapping[str, Any]) -> list[Any]:
        """Return the updates of `outputs` for a model and an earlier request: its `path`, `prompt` and `negative_prompt`."""
        import gradio as gr

        menus = [gr.Dropdown(**values) for values in _values(entry, chosen.get("path", ()), len(self.menus))]
        words = _words(entry, chosen)
        return [
            gr.Row(visible=not entry.takes_words),
            *menus,
            *(kind(**values) for kind, values in zip(_kinds(), words, strict=True)),
        ]

    def connect(self, library: Library, model: Any) -> None:
        """Let the menus follow one another, and an example be taken."""
        quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}

        def follow(title: str, *chosen: int | None) -> list[Any]:
            import gradio as gr

            return [gr.Dropdown(**values) for values in _values(library.get(title), chosen, len(self.menus))]

        for menu in self.menus if len(self.menus) > 1 else ():
            menu.input(follow, [model, *self.menus], self.menus, **quick)
        self.examples.click(lambda row: row[0], self.examples, self.prompt, **quick)


def add_asking(library: Library, titles: Sequence[str], *, name: str, chosen: Mapping[str, Any]) -> Asking:
    """Add menus and fields that serve all of some models to the page that is being built, shown as the first of them needs.

    Args:
        library: The models.
        titles: Titles of the models of the tab.
        name: Name of the tab.
        chosen: A request whose `path`, `prompt` and `negative_prompt` are shown at first.
    """
    import gradio as gr

    first, count = library.get(titles[0]), max(len(menu_names(library.get(title))) for title in titles)
    with gr.Row(visible=not first.takes_words) as row:
        menus = [
            gr.Dropdown(**values, elem_id=f"{name}-class{number or ''}", min_width=150)
            for number, values in enumerate(_values(first, chosen.get("path", ()), count))
        ]
    shown, prompt, examples, negative = _words(first, chosen)
    with gr.Column(**shown, elem_id=f"{name}-words", elem_classes="words") as words:
        field = gr.Textbox(
            **prompt, label="In words", placeholder=INVITATION, max_length=MAX_PROMPT, lines=1, elem_id=f"{name}-prompt"
        )
        # A hidden textbox says how examples look: as buttons.
        tries = gr.Dataset(
            **examples, components=[gr.Textbox(visible=False)], label="For example", elem_id=f"{name}-tries"
        )
        with gr.Accordion("Words to avoid", open=False, elem_id=f"{name}-avoid"):
            against = gr.Textbox(
                **negative,
                label="Words to avoid",
                show_label=False,
                container=False,
                placeholder="none",
                max_length=MAX_PROMPT,
                elem_id=f"{name}-negative",
            )
    return Asking(row, menus, words, field, tries, against)


def title_of(entry: DemoModel, request: Any) -> str:
    """Return what was asked for, in words."""
    return request.prompt if entry.takes_words else entry.class_name(request.label)


def told(entry: DemoModel, request: Any) -> tuple[Any, dict[str, Any]]:
    """Return what a request asks a pipeline of pictures for, and further arguments of the call."""
    if not entry.takes_words:
        return request.label, {}
    return request.prompt, {"negative_prompt": request.negative_prompt} if request.negative_prompt else {}


def invitation(entry: DemoModel) -> str:
    """Return what stands on a stage on which nothing is yet."""
    return f"{'Say in words what you want to see' if entry.takes_words else 'Choose a class'} and press Generate."


def _kinds() -> list[Any]:
    import gradio as gr

    return [gr.Column, gr.Textbox, gr.Dataset, gr.Textbox]


def _words(entry: DemoModel, chosen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of the parts for words: the whole, the field, the examples, and what is to be avoided."""
    prompts = entry.notes.prompts
    prompt = chosen.get("prompt") or (prompts[0] if prompts else "")
    return [
        {"visible": entry.takes_words},
        {"value": prompt},
        {"samples": [[text] for text in prompts], "visible": bool(prompts)},
        {"value": chosen.get("negative_prompt", "")},
    ]


def _values(entry: DemoModel, chosen: Sequence[int | None], count: int) -> list[dict[str, Any]]:
    """Return the arguments of each menu; those that a model has no use for are hidden."""
    names, menus = menu_names(entry), menu_choices(entry, chosen)
    shown = [
        {"choices": choices, "value": value, "label": name, "visible": True}
        for name, (choices, value) in zip(names, menus, strict=True)
    ]
    return [*shown, *({"choices": [(ANY, OPEN)], "value": OPEN, "visible": False} for _ in range(count - len(shown)))]
