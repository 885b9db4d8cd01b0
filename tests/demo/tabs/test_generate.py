from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.library import DemoModel, ModelNotes
from hiergen.demo.requests import to_seed
from hiergen.demo.stage import as_uri
from hiergen.demo.steps import StoppedError
from hiergen.demo.tabs.generate import GenerateRequest, generate, has_setting, make_ready
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create

SAMPLING = {"num_steps": 9, "solver": "euler", "guidance_scale": 1.5}


@pytest.fixture
def flow() -> DemoModel:
    """A flow with classes that are paths."""
    classes = ClassHierarchy.from_names(["animals/cat | flat", "animals/cat | round", "food/pear | flat"])
    tokenizer = create("hieratok-tiny").eval()
    generator = create(
        "flow-tiny",
        depth=1,
        num_classes=3,
        class_hierarchy=classes.to_json(),
        level_specs=specs_to_json(tokenizer.specs),
    ).eval()
    for linear in (generator.blocks[0].modulation, generator.final_modulation, generator.final_linear):
        torch.nn.init.normal_(linear.weight, std=0.2, generator=torch.Generator().manual_seed(1))
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=generator)
    pipe.set_progress_bar_config(disable=True)
    return DemoModel(pipe, ModelNotes(sampling=SAMPLING))


def test_levels_come_one_by_one_and_end_in_what_the_pipeline_makes(library) -> None:
    entry = library.get("one-dimensional")
    progress = list(generate(entry, GenerateRequest(label=3, count=2, seed=5), seconds=60.0))
    counts = [len(now.looks) for now in progress]
    assert counts == sorted(counts)
    assert set(counts) >= {1, 2, 3, 4, 5}
    assert [now.is_done for now in progress] == [False] * (len(progress) - 1) + [True]
    expected = entry.model(
        3, num_images_per_label=2, generator=torch.Generator().manual_seed(5), guidance_scale=1.5, temperature=1.0
    ).images
    assert list(progress[-1].looks[-1].pictures) == expected
    assert [(look.name, look.size) for look in progress[-1].looks] == [
        ("1 level", "1 token, 9 bits"),
        ("2 levels", "2 tokens, 18 bits"),
        ("3 levels", "4 tokens, 36 bits"),
        ("4 levels", "8 tokens, 72 bits"),
        ("5 levels", "16 tokens, 144 bits"),
    ]


def test_a_flow_shows_where_the_noise_is_heading(flow) -> None:
    request = GenerateRequest(label=flow.hierarchy.find("animals | flat"), seed=5)
    progress = list(generate(flow, request, seconds=60.0))
    *before, last = progress[-1].looks
    assert [(look.name, look.size) for look in before] == [(f"step {k}", "of 9") for k in (2, 3, 5, 6, 8)]
    assert (last.name, last.size) == ("step 9", "of 9")
    assert {now.steps for now in progress[:-1]} == {9}
    made = flow.model(request.label, generator=torch.Generator().manual_seed(5), output_type="pt", **SAMPLING)
    assert list(last.pictures) == to_pictures(made.images)
    # The look after step 2: from the state there, on in the direction of that step, to the end of time.
    states = []
    flow.model(
        request.label,
        generator=torch.Generator().manual_seed(5),
        callback_on_step_end=lambda pipe, step, now, given: (
            states.append((float(now), given["latents"].clone())) or given
        ),
        callback_on_step_end_tensor_inputs=("latents",),
        **SAMPLING,
    )
    (start, first), (now, second) = states[:2]
    ahead = second + (1 - now) * (second - first) / (now - start)
    wanted = flow.tokenizer.decode(flow.generator.tokens_of(ahead)).clamp(-1, 1)
    assert list(before[0].pictures) == to_pictures(wanted)


def test_what_the_visitor_asks_goes_before_the_notes(library) -> None:
    entry = library.get("one-dimensional")
    noted = DemoModel(entry.model, ModelNotes(sampling={"top_k": 1, "temperature": 1.9, "guidance_scale": 7.0}))
    request = GenerateRequest(label=1, count=1, guidance_scale=1.0, temperature=0.5)
    made = list(generate(noted, request, seconds=60.0))[-1].looks[-1].pictures
    expected = entry.model(1, generator=torch.Generator().manual_seed(0), guidance_scale=1.0, top_k=1).images
    assert list(made) == expected


def test_finished_results_are_what_their_settings_make(library) -> None:
    entry = library.get("one-dimensional")
    ready = make_ready(entry, seconds=60.0, limit=60.0)
    assert [item["title"] for item in ready] == list("01235678")
    one = ready[3]
    assert one["chosen"] == {
        "label": 3, "count": 1, "guidance_scale": 1.5, "temperature": 1.0, "seed": 3, "path": [3],
        "prompt": "", "negative_prompt": "", "best_of": 1,
    }  # fmt: skip
    (picture,) = entry.model(3, generator=torch.Generator().manual_seed(3), guidance_scale=1.5).images
    assert as_uri(picture) in one["stage"]
    assert one["line"] == "3, seed 3: 16 tokens, 144 bits."
    assert make_ready(entry, seconds=0.0, limit=60.0) == []
    assert make_ready(entry, seconds=60.0, limit=1e-6) == []
    chosen = dataclasses.replace(entry, notes=dataclasses.replace(entry.notes, shown=(7, 2)))
    assert [one["chosen"]["path"] for one in make_ready(chosen, seconds=60.0, limit=60.0)] == [[7], [2]]


@pytest.mark.parametrize("label", [-1, 10])
def test_a_class_that_is_not_there(library, label) -> None:
    with pytest.raises(ValueError, match=f"label is {label}, expected 0 to 9"):
        list(generate(library.get("one-dimensional"), GenerateRequest(label=label), seconds=60.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 9}, "count is 9, expected 1 to 8"),
        ({"best_of": 5}, "best_of is 5, expected 1 to 4"),
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


def test_a_model_of_texts_is_told_in_words(library) -> None:
    entry = library.get("words")
    request = GenerateRequest(count=2, guidance_scale=2.0, seed=5, prompt="red heart", negative_prompt="hat")
    *_, last = generate(entry, request, seconds=60.0)
    sampling = {"num_images_per_prompt": 2, "num_steps": 3, "guidance_scale": 2.0}
    made = entry.model("red heart", "hat", generator=torch.Generator().manual_seed(5), **sampling).images
    assert list(last.looks[-1].pictures) == made
    plain = entry.model("red heart", generator=torch.Generator().manual_seed(5), **sampling).images
    assert made != plain
    one, two = make_ready(entry, seconds=60.0, limit=60.0)
    assert [one["title"], two["title"]] == ["red heart", "blue &lt;cat&gt; &amp; dog"]
    assert (two["chosen"]["prompt"], two["chosen"]["path"]) == ("blue <cat> & dog", [])
    assert two["line"].startswith("blue <cat> & dog, seed 1: ")
    nameless = dataclasses.replace(entry, notes=ModelNotes())
    assert make_ready(nameless, seconds=60.0, limit=60.0) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " "}, "the field for the words is empty: say what you want to see"),
        ({"prompt": "a" * 301}, "prompt has 301 characters, expected at most 300"),
        ({"prompt": "a", "negative_prompt": "a" * 301}, "negative_prompt has 301 characters, expected at most 300"),
    ],
)
def test_words_that_are_missing_or_too_many(library, values, message) -> None:
    with pytest.raises(ValueError, match=message):
        list(generate(library.get("words"), GenerateRequest(**values), seconds=60.0))


def test_only_generators_that_draw_have_a_temperature(library) -> None:
    assert has_setting(library.get("one-dimensional"), "temperature")
    assert not has_setting(library.get("one-dimensional"), "num_steps")


def test_an_empty_field_of_the_seed_is_said_to_be_empty() -> None:
    assert to_seed(7.0) == 7
    with pytest.raises(ValueError, match="the field for the seed is empty, expected a whole number"):
        to_seed(None)


@pytest.mark.parametrize("name", ["one-dimensional", "words"])
def test_of_several_candidates_the_best_is_shown_from_its_first_step_on(library, name, monkeypatch) -> None:
    entry = library.get(name)
    # A new model of levels reads no class yet, so that no candidate gains by it: here those of large ids do.
    if not entry.takes_words:
        monkeypatch.setattr(type(entry.model), "_gains", lambda pipe, pyramid, told: pyramid.concat().sum(dim=1))
    request = GenerateRequest(label=3, count=2, seed=5, prompt="red heart", best_of=3)
    *before, last = generate(entry, request, seconds=60.0)
    assert {len(look.pictures) for now in before for look in now.looks} == {6}
    assert {len(look.pictures) for look in last.looks} == {2}
    asked, each = ("red heart", "num_images_per_prompt") if entry.takes_words else (3, "num_images_per_label")
    sampling = {**entry.notes.sampling, "guidance_scale": 1.5, each: 2}
    made = entry.model(asked, generator=torch.Generator().manual_seed(5), best_of=3, **sampling)
    assert list(last.looks[-1].pictures) == made.images
    assert made.kept.any()
    for shown, look in zip(before[-1].looks, last.looks, strict=False):
        assert look.pictures == tuple(shown.pictures[3 * image + k] for image, k in enumerate(made.kept))
