from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hiergen.generators.conditioning import Unconditional
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.arguments import check_count, read_generators, read_labels
from hiergen.pipelines.base import HiergenPipeline
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create
from hiergen.seeding import SampleRng


def _seeds(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (3, [3]),
        (np.int64(3), [3]),
        (np.uint8(3), [3]),
        (np.array(3), [3]),
        (np.array([3, 4], dtype=np.int32), [3, 4]),
        (torch.tensor(3), [3]),
        (torch.tensor([3, 4], dtype=torch.uint8), [3, 4]),
        ([3, np.int16(4), torch.tensor(5), np.array(6)], [3, 4, 5, 6]),
        ((3,), [3]),
        (range(2, 5), [2, 3, 4]),
        (iter([1, 2]), [1, 2]),
    ],
)
def test_labels_are_integers_of_any_kind(labels: Any, expected: list[int]) -> None:
    assert read_labels(labels).tolist() == expected
    assert read_labels(0).dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (3.0, "class_labels holds 3.0 of type float, expected integers"),
        ([3.7], "class_labels holds 3.7 of type float"),
        (np.array([3.0]), "class_labels holds 3.0 of type float"),
        (torch.tensor(3.0), "class_labels holds 3.0 of type float"),
        ("3", "class_labels holds '3' of type str"),
        (["cat"], "class_labels holds 'cat' of type str"),
        (b"3", "class_labels holds b'3' of type bytes"),
        (True, "class_labels holds True of type bool"),
        ([np.bool_(True)], "of type bool"),
        (torch.tensor([True]), "class_labels holds True of type bool"),
        ({3: 4}, r"class_labels holds \{3: 4\} of type dict"),
        ([None], "class_labels holds None of type NoneType"),
        ([[3]], r"class_labels holds \[3\] of type list"),
        (np.zeros((2, 2), dtype=int), r"class_labels has shape \(2, 2\)"),
        (torch.zeros(1, 1, dtype=torch.int64), r"class_labels has shape \(1, 1\)"),
        (float("nan"), "class_labels holds nan of type float"),
        (2**63, "class_labels holds 9223372036854775808, expected 0 to"),
        (-1, "class_labels holds -1, expected 0 to"),
        ([], "class_labels is empty, expected at least one label"),
    ],
)
def test_what_is_no_label_is_refused_by_name(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(labels)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (_seeds(0, 1, 2), "generator holds 3 generators, expected 2, one per image"),
        (tuple(_seeds(0)), "generator holds 1 generators, expected 2, one per image"),
        ([], "generator is an empty list, expected 2, one per image"),
        (0, r"generator holds 0 of type int, expected a torch.Generator, or a list of one per image"),
        ([0, 1], "generator holds 0 of type int"),
        ("ab", "generator holds 'ab' of type str"),
        (SampleRng(_seeds(0)), "generator holds 1 generators, expected 2"),
    ],
)
def test_a_source_of_draws_that_does_not_fit_is_refused_by_name(generator: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_generators(generator, 2, "image")


@pytest.mark.parametrize(
    ("value", "message"), [(0, "n is 0, expected at least 1"), (1.5, "n is 1.5"), (True, "n is True")]
)
def test_counts_are_integers_of_at_least_one(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_count("n", value)


def _pipe(kind: type[HiergenPipeline], tokenizer: str, generator: str, **options: Any) -> HiergenPipeline:
    torch.manual_seed(0)
    made = create(tokenizer).eval()
    drawn = create(generator, level_specs=specs_to_json(made.specs), **options).eval()
    for parameter in (*made.parameters(), *drawn.parameters()):
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    pipe = kind(tokenizer=made, generator=drawn)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_FLOW = {"depth": 1, "dim": 48, "num_heads": 1}
PIPES: dict[str, tuple[Any, str, str, dict[str, Any], dict[str, Any]]] = {
    "ids": (ClassToImagePipeline, "restok-tiny", "har-tiny", {"depth": 1}, {"guidance_scale": 2.0, "top_p": 0.9}),
    "flow": (ClassToImagePipeline, "hieratok-tiny", "flow-tiny", _FLOW, {"num_steps": 2}),
    "sde": (ClassToImagePipeline, "hieratok-tiny", "flow-tiny", _FLOW, {"num_steps": 3, "solver": "sde"}),
    "masked": (
        ClassToImagePipeline,
        "hieratok-tiny",
        "mar-tiny",
        {"encoder_depth": 1, "decoder_depth": 1},
        {"num_steps": 3, "head_steps": 3, "head_spacing": "leading"},
    ),
    "video": (ClassToVideoPipeline, "patches-tiny", "flow-video-tiny", {"depth": 1}, {"num_steps": 2}),
    "shape": (
        ClassToShapePipeline,
        "pyramid-vae-tiny",
        "mar3d-tiny",
        {"depth": 1},
        {"num_steps": 2, "head_steps": 3, "extraction": ExtractionSettings(depth=3)},
    ),
}


@pytest.mark.parametrize("kind", PIPES)
def test_a_list_of_generators_equals_a_call_of_each(kind: str) -> None:
    *parts, options, settings = PIPES[kind]
    pipe = _pipe(*parts, **options)
    both = pipe([3, 7], generator=_seeds(0, 1), **settings).pyramid
    for index, label in enumerate((3, 7)):
        alone = pipe(label, generator=_seeds(index), **settings).pyramid
        single = pipe(label, generator=_seeds(index)[0], **settings).pyramid
        for level, one, direct in zip(both.levels, alone.levels, single.levels, strict=True):
            assert torch.equal(one, direct)
            torch.testing.assert_close(level[index : index + 1], one, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=f"generator holds 3 generators, expected 2, one per {pipe.unit}"):
        pipe([3, 7], generator=_seeds(0, 1, 2), **settings)


@pytest.mark.parametrize("kind", ["ids", "video", "shape"])
def test_every_kind_of_output_and_the_tuple(kind: str) -> None:
    *parts, options, settings = PIPES[kind]
    pipe = _pipe(*parts, **options)
    made = {
        output: pipe([3], generator=_seeds(0), output_type=output, return_dict=False, **settings)[0]
        for output in pipe.output_types
    }
    result = pipe([3], generator=_seeds(0), **settings)
    assert tuple(result.keys())[1] == "pyramid"
    if kind == "shape":
        vertices, faces = made["np"][0]
        assert (vertices.dtype, faces.dtype) == (np.float32, np.int64)
        assert np.array_equal(made["pt"][0][0].numpy(), vertices)
        assert len(made["mesh"][0].faces) == len(faces)
    else:
        array, tensor = made["np"], made["pt"]
        assert array.dtype == np.float32
        assert array.shape == (1, *tensor.shape[2:], 3)
        assert np.allclose(array, (tensor.movedim(1, -1).numpy() + 1) / 2, atol=1e-6)
        first = made["pil"][0] if kind == "ids" else made["pil"][0][0]
        shown = array[0] if kind == "ids" else array[0, 0]
        assert np.abs(np.asarray(first) / 255 - shown).max() <= 0.5 / 255 + 1e-6
    known = ", ".join(map(repr, pipe.output_types[:-1]))
    with pytest.raises(ValueError, match=f"output_type is 'jpg', expected {known} or 'pt'"):
        pipe([3], output_type="jpg", **settings)


@pytest.mark.parametrize("kind", ["ids", "flow", "video"])
def test_samples_without_a_class(kind: str) -> None:
    *parts, options, settings = PIPES[kind]
    pipe = _pipe(*parts, **options)
    count = f"num_{pipe.unit}s"
    made = pipe(generator=_seeds(0, 1), **{count: 2}, **settings).pyramid
    assert made.batch_size == 2
    # The null label is the row behind those of the classes.
    chosen = pipe.generator.make_settings(**settings)
    same = pipe.generator.generate(Unconditional(2), chosen, rng=SampleRng(_seeds(0, 1)))
    assert torch.equal(made.concat(), same.concat())
    other = pipe([0, 0], generator=_seeds(0, 1), **settings).pyramid
    assert not torch.equal(made.concat(), other.concat())
    with pytest.raises(ValueError, match=f"{count} is 2 beside class_labels, expected {count}_per_label"):
        pipe([3], **{count: 2}, **settings)
    with pytest.raises(ValueError, match="class labels span 10 to 10, expected 0 to 9"):
        pipe(10, **settings)
    dropout = "class_dropout" if kind == "ids" else "label_dropout"
    never = _pipe(*parts, **{**options, dropout: 0.0})
    with pytest.raises(ValueError, match=r"class_labels is None, but this .* makes nothing without a class"):
        never(**settings)
    with pytest.raises(
        ValueError, match=r"the condition is Unconditional\(count=1\), expected labels: none was dropped"
    ):
        never.generator.generate(Unconditional(1), chosen)


NAMED = {
    "ids": ("LevelAR gives NaN or infinity: logits at step 0 of", "level 0"),
    "flow": ("FlowTransformer gives NaN or infinity: the velocity at time 0.000", ""),
    "masked": ("MaskedAR gives NaN or infinity: tokens at step 0, level 0", ""),
    "video": ("FlowTransformer gives NaN or infinity", ""),
    "shape": ("MaskedAR gives NaN or infinity: tokens at step 0", ""),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", NAMED)
def test_a_generator_that_gives_nan_is_an_error_that_names_the_step(kind: str, bad: float) -> None:
    *parts, options, settings = PIPES[kind]
    pipe = _pipe(*parts, **options)
    for parameter in pipe.generator.parameters():
        parameter.data.flatten()[0] = bad
    with pytest.raises(FloatingPointError, match=".*".join(NAMED[kind])):
        pipe([3], generator=_seeds(0), **settings)


@pytest.mark.parametrize("kind", ["ids", "flow", "video", "shape"])
def test_a_tokenizer_that_gives_nan_is_an_error_that_names_the_sample(kind: str) -> None:
    *parts, options, settings = PIPES[kind]
    pipe = _pipe(*parts, **options)
    for parameter in pipe.tokenizer.parameters():
        parameter.data.fill_(float("nan"))
    message = (
        r"the field of shape 0 of 1" if kind == "shape" else f"{pipe.unit} 0 of 1 holds NaN or infinity, decoded by"
    )
    with pytest.raises(FloatingPointError, match=message):
        pipe([3], generator=_seeds(0), **settings)
