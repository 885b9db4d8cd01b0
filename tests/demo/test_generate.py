from __future__ import annotations

import math

import pytest
import torch

from hiergen.demo.generate import GenerateRequest, generate, has_setting
from hiergen.demo.library import DemoModel, ModelNotes
from hiergen.demo.pictures import montage
from hiergen.demo.requests import to_seed
from hiergen.demo.steps import StoppedError


def test_levels_come_one_by_one_and_end_in_what_the_pipeline_makes(library) -> None:
    entry = library.get("one-dimensional")
    progress = list(generate(entry, GenerateRequest(label=3, count=2, seed=5), seconds=60.0))
    counts = [len(now.levels) for now in progress]
    assert counts == sorted(counts)
    assert set(counts) >= {1, 2, 3, 4, 5}
    assert [now.is_done for now in progress] == [False] * (len(progress) - 1) + [True]
    expected = entry.model(
        3, num_images_per_label=2, generator=torch.Generator().manual_seed(5), guidance_scale=1.5, temperature=1.0
    ).images
    assert progress[-1].levels[-1][0] == montage(expected)
    assert [caption for _, caption in progress[-1].levels] == [
        "1 token, 9 bits per picture",
        "2 tokens, 18 bits per picture",
        "4 tokens, 36 bits per picture",
        "8 tokens, 72 bits per picture",
        "16 tokens, 144 bits per picture",
    ]


def test_what_the_visitor_asks_goes_before_the_notes(library) -> None:
    entry = library.get("one-dimensional")
    noted = DemoModel(entry.model, ModelNotes(sampling={"top_k": 1, "temperature": 1.9, "guidance_scale": 7.0}))
    request = GenerateRequest(label=1, count=1, guidance_scale=1.0, temperature=0.5)
    made = list(generate(noted, request, seconds=60.0))[-1].levels[-1][0]
    expected = entry.model(1, generator=torch.Generator().manual_seed(0), guidance_scale=1.0, top_k=1).images
    assert made == expected[0]


@pytest.mark.parametrize("label", [-1, 10])
def test_a_class_that_is_not_there(library, label) -> None:
    with pytest.raises(ValueError, match=f"label is {label}, expected 0 to 9"):
        list(generate(library.get("one-dimensional"), GenerateRequest(label=label), seconds=60.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 9}, "count is 9, expected 1 to 8"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan, expected 0 to 20"),
        ({"temperature": -1.0}, "temperature is -1.0, expected 0 to 4"),
        ({"seed": 2**32}, "seed is 4294967296, expected 0 to 4294967295"),
    ],
)
def test_settings_have_bounds_whoever_sends_them(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateRequest(label=0, **values)


def test_a_generation_that_takes_too_long_is_stopped(library) -> None:
    with pytest.raises(StoppedError, match="stopped after"):
        list(generate(library.get("one-dimensional"), GenerateRequest(label=0), seconds=1e-6))


def test_only_generators_that_draw_have_a_temperature(library) -> None:
    assert has_setting(library.get("one-dimensional"), "temperature")
    assert not has_setting(library.get("one-dimensional"), "num_steps")


def test_an_empty_field_of_the_seed_is_said_to_be_empty() -> None:
    assert to_seed(7.0) == 7
    with pytest.raises(ValueError, match="the field for the seed is empty, expected a whole number"):
        to_seed(None)
