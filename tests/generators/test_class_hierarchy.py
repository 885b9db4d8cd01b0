from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiergen.generators.conditioning.class_hierarchy import ABSENT, OPEN, ClassHierarchy, ClassLevel
from hiergen.training.tasks.generator import read_sizes

CLASSES = ["wild/ape | flat", "pets/cat | round", "pets/cat | flat", "pets/dog | flat", "stone"]


def test_names_tell_levels_and_attributes() -> None:
    found = ClassHierarchy.from_names(CLASSES)
    group, animal, style = found.levels
    assert (group.names, animal.names) == (("wild", "pets", "stone"), ("wild/ape", "pets/cat", "pets/dog"))
    assert (style.names, style.is_attribute, style.of_leaf) == (("flat", "round"), True, (0, 1, 0, 0, None))
    assert animal.of_leaf == (0, 1, 1, 2, None)
    assert found.nodes[:5] == ((0, 0, 0), (1, 1, 1), (1, 1, 0), (1, 2, 0), (2, ABSENT, ABSENT))
    assert ClassHierarchy.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_nodes_are_paths_cut_from_their_fine_end() -> None:
    found = ClassHierarchy.from_names(CLASSES)
    assert found.nodes[found.null] == (OPEN, OPEN, OPEN)
    assert len(set(found.nodes)) == len(found.nodes)
    assert found.nodes[found.find("pets")] == (1, OPEN, OPEN)
    assert found.nodes[found.find("pets | round")] == (1, OPEN, 1)
    assert found.nodes[found.find("pets/cat")] == (1, 1, OPEN)
    assert found.nodes[found.find("round")] == (OPEN, OPEN, 1)
    assert found.find("") == found.null
    # No node asks for a group without its subgroup's own group, nor for what no class is.
    assert not [path for path in found.nodes if path[0] == OPEN and path[1] != OPEN]
    assert "wild | round" not in found.names


def test_parents_open_the_tree_first_and_attributes_last() -> None:
    found = ClassHierarchy.from_names(CLASSES)
    way = ["pets/cat | round"]
    while way[-1]:
        way.append(found.names[found.parents[found.find(way[-1])]])
    assert way == ["pets/cat | round", "pets | round", "round", ""]
    assert found.parents[found.null] == found.null
    assert found.names[found.parents[found.find("stone")]] == ""


def test_classes_are_a_last_level_where_the_levels_leave_them_alike() -> None:
    flat = ClassHierarchy.from_names(["ape", "cat"])
    assert flat.depth == 1
    tops = ClassHierarchy(("shirt", "coat", "boot"), (ClassLevel(("tops", "shoes"), (0, 0, 1)),))
    assert [level.names for level in tops.levels] == [("tops", "shoes"), ("shirt", "coat", "boot")]
    assert tops.names[tops.parents[0]] == "tops"
    assert tops.find("shirt") == 0


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"no class, group or attribute is named 'pet'; did you mean pets"):
        ClassHierarchy.from_names(CLASSES).find("pet")
    with pytest.raises(ValueError, match="classes are 2, expected at least one, of different names"):
        ClassHierarchy.from_names(["a", "a"])
    with pytest.raises(ValueError, match="level 0 has 1 entries in of_leaf, expected 2, one per class"):
        ClassHierarchy(("a", "b"), (ClassLevel(("x",), (0,)),))
    with pytest.raises(ValueError, match="of_leaf of level 0 holds 1, expected 0 to 0, or none"):
        ClassHierarchy(("a", "b"), (ClassLevel(("x",), (0, 1)),))
    with pytest.raises(ValueError, match="'y' of level 1 has two parents, expected one"):
        ClassHierarchy(("a", "b"), (ClassLevel(("v", "w"), (0, 1)), ClassLevel(("y",), (0, 0))))
    with pytest.raises(ValueError, match="a class hierarchy has the entries classes and levels"):
        ClassHierarchy.from_json({"classes": ["a"]})


FASHION = ["t-shirt", "trousers", "bag", "sandal", "boot"]


def table(folder: Path, *rows: str) -> Path:
    (folder / "classes.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "classes.csv"


def test_a_table_may_leave_levels_out(tmp_path: Path) -> None:
    """As WordNet's paths do: a class need not have a group at every level."""
    file = table(
        tmp_path,
        "class,| season,where,kind",
        "boot,winter,feet,closed",
        "sandal,summer,feet,",
        "",
        "bag,,,",
        "trousers,,legs,",
        "t-shirt,summer,,",
    )
    found = ClassHierarchy.from_table(file, FASHION)
    assert [level.names for level in found.levels] == [("legs", "feet"), ("closed",), ("summer", "winter")]
    assert [level.of_leaf for level in found.levels] == [
        (None, 0, None, 1, 1),
        (None, None, None, None, 0),
        (0, None, None, 0, 1),
    ]
    assert [level.is_attribute for level in found.levels] == [False, False, True]
    boot = found.find("boot")
    assert found.names[found.parents[boot]] == "feet | winter"
    assert found.nodes[found.find("bag")] == (ABSENT, ABSENT, ABSENT)
    assert ClassHierarchy.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["class"], "has 1 columns, expected the class and at least one group"),
        (["class,a", "bag,x", "bag,y"], r"has the row \['bag', 'y'\], expected a class, once, and 1 groups"),
        (
            ["class,a", "bags,x"],
            r"has the row \['bags', 'x'\], expected a class, once, and 1 groups; did you mean bag\?",
        ),
        (["class,a", "bag,x,y"], r"has the row \['bag', 'x', 'y'\], expected a class, once, and 1 groups"),
        (["class,a", "bag,x"], "has no row for 't-shirt', expected one for each of 5 classes"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ClassHierarchy.from_table(table(tmp_path, *rows), FASHION)


def test_the_generator_task_reads_the_table(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"specs": [], "classes": ["ape", "cat"]}))
    file = table(tmp_path, "class,kind", "cat,pets", "ape,wild")
    found = read_sizes(str(tmp_path), class_table=str(file))
    assert found["class_hierarchy"] == ClassHierarchy.from_table(file, ["ape", "cat"]).to_json()
