from __future__ import annotations

from types import SimpleNamespace

import pytest

from hiergen.demo.asking import Asking, invitation, menu_choices, menu_label, menu_names, menu_path
from hiergen.demo.library import DemoModel, ModelNotes
from hiergen.generators.conditioning.class_hierarchy import OPEN, ClassHierarchy

CLASSES = ClassHierarchy.from_names(
    ["animals/cat | flat", "animals/cat | round", "animals/dog | flat", "food/pear | round", "food | flat"]
)


def entry_of(hierarchy: ClassHierarchy | None, num_classes: int = 5) -> DemoModel:
    """A model of which only the config of the generator is looked at."""
    config = {"num_classes": num_classes, "class_hierarchy": hierarchy and hierarchy.to_json()}
    return DemoModel(SimpleNamespace(tokenizer=None, generator=SimpleNamespace(config=config)), ModelNotes())


PATHS = entry_of(CLASSES)


def words(chosen: list[int | None]) -> list[list[str]]:
    return [[word for word, _ in choices] for choices, _ in menu_choices(PATHS, chosen)]


def test_group_subgroup_and_style_depend_on_those_before_and_may_be_any() -> None:
    assert menu_names(PATHS) == ["Group", "Subgroup", "Style"]
    everything = [["any", "animals", "food"], ["any", "cat", "dog", "pear"], ["any", "flat", "round"]]
    assert words([]) == words([OPEN, OPEN, OPEN]) == words([None, None, None]) == everything
    assert words([1, OPEN, OPEN])[1:] == [["any", "pear"], ["any", "flat", "round"]]
    assert words([0, 1, OPEN])[2] == ["any", "flat"]
    # What is no longer offered is left open.
    assert [value for _, value in menu_choices(PATHS, [1, 0, 1])] == [1, OPEN, 1]


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ([OPEN, OPEN, OPEN], ""),
        ([0, OPEN, OPEN], "animals"),
        ([0, OPEN, 1], "animals | round"),
        ([OPEN, OPEN, 0], "flat"),
        ([0, 0, 1], "animals/cat | round"),
        ([0, 1, OPEN], "animals/dog"),
        # The group follows from the subgroup.
        ([OPEN, 1, 0], "animals/dog | flat"),
    ],
)
def test_menus_choose_a_node(chosen, name) -> None:
    label = menu_label(PATHS, chosen)
    assert CLASSES.names[label] == name
    assert menu_label(PATHS, menu_path(PATHS, label)) == label


def test_names_that_do_not_occur_together_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no class of 'food' and 'animals/cat', expected names that occur"):
        menu_label(PATHS, [1, 0, OPEN])


def test_nodes_are_named_by_their_finest_part() -> None:
    assert PATHS.num_labels == len(CLASSES.nodes)
    assert PATHS.class_name(CLASSES.find("animals/cat | round")) == "cat, round"
    assert PATHS.class_name(CLASSES.find("flat")) == "flat"
    assert PATHS.class_name(CLASSES.null) == "any class"
    assert PATHS.about == "Classes are paths of 3 levels, of 2, 3, 2 names."


def test_plain_classes_have_one_menu() -> None:
    plain = entry_of(None)
    assert menu_names(plain) == ["Class"]
    ((choices, value),) = menu_choices(plain, [])
    assert choices[1] == ("class 1", 1)
    assert value == 3
    assert menu_choices(plain, [4])[0][1] == 4
    # Of a model before, which had more classes.
    assert menu_choices(plain, [9])[0][1] == 3
    assert menu_label(plain, [4, None]) == 4
    assert menu_path(plain, 4) == [4]


def test_a_model_of_texts_has_words_in_place_of_menus(library) -> None:
    entry = library.get("words")
    assert (menu_names(entry), menu_choices(entry, [3]), menu_path(entry, 0), menu_label(entry, [])) == ([], [], [], 0)
    asking = Asking(None, [None], None, None, None, None)
    assert asking.read(entry, [3, " red heart ", None]) == {"prompt": "red heart", "negative_prompt": ""}
    assert asking.read(library.get("one-dimensional"), [3, "words", ""]) == {"label": 3}
    assert invitation(entry) == "Say in words what you want to see and press Generate."
    pytest.importorskip("gradio")
    row, menu, words, prompt, examples, negative = asking.show(entry, {"negative_prompt": "hat"})
    assert (row.visible, menu.visible, words.visible, prompt.value, negative.value) == (
        False,
        False,
        True,
        "red heart",
        "hat",
    )
    assert examples.raw_samples == [["red heart"], ["blue <cat> & dog"]]
    row, menu, words, *_ = asking.show(library.get("one-dimensional"), {"path": [4], "prompt": ""})
    assert (row.visible, menu.visible, menu.value, words.visible) == (True, True, 4, False)


def test_trees_of_other_depths_and_more_attributes_have_menus_too() -> None:
    deep = ClassHierarchy.from_names(["a/b/c/d | x | y", "a/b/c/e | x | z"])
    assert menu_names(entry_of(deep, 2)) == ["Level 1", "Level 2", "Level 3", "Level 4", "Style 1", "Style 2"]
    assert menu_names(entry_of(ClassHierarchy.from_names(["a/b/c", "a/b/d"]), 2)) == ["Group", "Subgroup", "Class"]
