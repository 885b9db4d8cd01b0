from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hiergen.pipelines.base import HiergenPipeline
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.labels import class_names, file_names, find_class, list_names, number_classes, titles
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

NAMES = {0: "airplanes", 1: "Faces", 2: "goldfish, Carassius auratus", 3: "crane", 4: "crane", 5: "cars/sports cars"}


def _pipe(kind: type[HiergenPipeline], tokenizer: str, generator: str, **options: Any) -> HiergenPipeline:
    made = create(tokenizer).eval()
    drawn = create(generator, depth=1, num_classes=8, level_specs=specs_to_json(made.specs), **options).eval()
    drawn.register_to_config(id2label={str(label): name for label, name in NAMES.items()})
    return kind(tokenizer=made, generator=drawn)


@pytest.fixture(scope="module")
def pipe() -> HiergenPipeline:
    return _pipe(ClassToImagePipeline, "restok-tiny", "har-tiny")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("airplanes", 0),
        ("AIRPLANES ", 0),
        ("faces", 1),
        ("goldfish, Carassius auratus", 2),
        ("Goldfish,  carassius auratus", 2),
        ("carassius auratus", 2),
        ("cars/sports cars", 5),
    ],
)
def test_a_class_is_found_by_any_of_its_names(text: str, label: int) -> None:
    assert find_class(NAMES, text) == label


def test_a_whole_name_goes_before_a_part_and_equal_capitals_before_others() -> None:
    assert find_class({0: "a, b", 1: "b"}, "b") == 1
    assert find_class({0: "Cat", 1: "cat"}, "cat") == 1
    assert find_class({0: "Cat", 1: "cat"}, "Cat") == 0
    with pytest.raises(ValueError, match=r"'CAT', which is the name of several classes: 0 \(Cat\) and 1 \(cat\)"):
        find_class({0: "Cat", 1: "cat"}, "CAT")
    assert find_class({0: ",", 1: "a"}, ",") == 0


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (NAMES, "airplane", "holds 'airplane', which is the name of no class; did you mean airplanes or crane"),
        (NAMES, "GOLDFISCH", r"which is the name of no class; did you mean goldfish\?"),
        (NAMES, "crane", r"several classes: 3 \(crane\) and 4 \(crane\); give the number"),
        (NAMES, "", "holds '', which is the name of no class; known are Carassius auratus, Faces"),
        ({}, "cat", "holds 'cat' of type str, expected integers: the classes of this generator have no names"),
    ],
)
def test_a_name_of_no_class_or_of_several_is_refused(names: dict[int, str], text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"class_labels .*{message}"):
        number_classes([text], names)


def test_a_pipeline_has_labels_as_those_of_diffusers(pipe) -> None:
    assert pipe.labels == {"Carassius auratus": 2, "Faces": 1, "airplanes": 0, "cars/sports cars": 5, "goldfish": 2}
    assert list(pipe.labels) == sorted(pipe.labels)
    assert pipe.get_label_ids("airplanes") == [0]
    assert pipe.get_label_ids(["goldfish", "faces", "goldfish"]) == [2, 1, 2]
    with pytest.raises(ValueError, match="label holds 'face', which is the name of no class; did you mean Faces"):
        pipe.get_label_ids("face")
    with pytest.raises(ValueError, match="label holds 3 of type int, expected the name of a class"):
        pipe.get_label_ids([3])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("Faces", [1]),
        (["airplanes", 2, "Faces"], [0, 2, 1]),
        (("airplanes", torch.tensor(4), np.int16(7)), [0, 4, 7]),
        (np.array(["Faces", "goldfish"]), [1, 2]),
        (np.array("Faces"), [1]),
        (iter(["Faces"]), [1]),
    ],
)
def test_names_and_numbers_are_mixed(pipe, labels: Any, expected: list[int]) -> None:
    assert pipe._condition(labels, 1, None, None, "pt")[0].tolist() == expected


@pytest.mark.parametrize(
    ("kind", "tokenizer", "generator", "settings"),
    [
        (ClassToImagePipeline, "restok-tiny", "har-tiny", {}),
        (ClassToVideoPipeline, "patches-tiny", "flow-video-tiny", {"num_steps": 1}),
        (ClassToShapePipeline, "pyramid-vae-tiny", "mar3d-tiny", {"num_steps": 1, "head_steps": 2}),
    ],
)
def test_every_pipeline_of_classes_takes_names(monkeypatch, kind, tokenizer, generator, settings) -> None:
    pipe = _pipe(kind, tokenizer, generator)
    seen = []

    def generate(condition: torch.Tensor, *_: Any, **__: Any) -> None:
        seen.append(condition.tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(pipe.generator, "generate", generate)
    for labels in ("goldfish", ["airplanes", 2, "Faces"]):
        with pytest.raises(KeyboardInterrupt):
            pipe(labels, **settings)
    assert seen == [[2], [0, 2, 1]]
    with pytest.raises(ValueError, match="class_labels holds 'cat', which is the name of no class"):
        pipe(["airplanes", "cat"], **settings)


def test_names_come_from_the_config_without_what_is_blank(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path)
    assert ClassToImagePipeline.from_pretrained(tmp_path).class_names == NAMES
    unnamed = create("har-tiny", depth=1)
    assert class_names(unnamed) == {}
    unnamed.register_to_config(id2label={"0": "", "1": " a\n b "})
    assert class_names(unnamed) == {1: "a b"}


def test_names_of_files_are_safe_and_different_everywhere() -> None:
    names = {
        0: "airplanes",
        1: "../etc/passwd",
        2: "Cat, feline",
        3: "cat",
        4: "Ünïcödé 猫",
        5: "...",
        6: "a:b*c?",
        7: "x" * 300,
        8: "class0009",
        10: "e\u0301",
    }
    found = file_names(names, [*range(10), 10])
    assert found == [
        "airplanes",
        "etc-passwd",
        "class0002-Cat",
        "class0003-cat",
        "Ünïcödé-猫",
        "class0005",
        "a-b-c",
        "x" * 48,
        "class0008-class0009",
        "class0009",
        "é",
    ]
    # Some file systems know no capitals, others take accents apart.
    assert file_names({0: "É", 1: "e\u0301"}, [0, 1]) == ["class0000-É", "class0001-é"]
    assert file_names({}, [3]) == ["class0003"]


def test_titles_are_short_and_different() -> None:
    assert titles(NAMES, [0, 2, 7]) == ["airplanes", "goldfish", "7"]
    assert titles(NAMES, [3, 4]) == ["crane (3)", "crane (4)"]
    assert titles({0: "y" * 40}, [0]) == ["y" * 31 + "…"]
    assert list_names(NAMES) == "6 classes: airplanes, Faces, goldfish, crane, crane, ..."
    assert list_names({0: "a"}) == "1 class: a"
