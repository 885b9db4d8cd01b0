"""Callbacks, interrupts, bars and offloading: pipelines behave as diffusers' do."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from accelerate.hooks import CpuOffload
from diffusers.callbacks import PipelineCallback

from hiergen.generators.base import Generator
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.pipelines.base import HiergenPipeline
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.shape import ClassToShapePipeline
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import TokenPyramid, specs_to_json
from hiergen.registry import create

_FLOW = {"depth": 1, "dim": 48, "num_heads": 1}
_MASKED = {"encoder_depth": 1, "decoder_depth": 1}
_HEAD = {"head_steps": 2, "head_spacing": "leading"}
#: Class of the pipeline, presets of its parts, overrides of the generator, settings of a call, number of its steps.
FAMILIES: dict[str, tuple[Any, str, str, dict[str, Any], dict[str, Any], int]] = {
    "ids": (ClassToImagePipeline, "restok-tiny", "har-tiny", {"depth": 1, "dim": 64, "num_heads": 2}, {}, 6),
    "flow": (ClassToImagePipeline, "hieratok-tiny", "flow-tiny", _FLOW, {"num_steps": 3}, 3),
    "masked": (ClassToImagePipeline, "hieratok-tiny", "mar-tiny", _MASKED, {"num_steps": 3, **_HEAD}, 3),
    "levels": (
        ClassToImagePipeline,
        "hieratok-tiny-levels",
        "mar-tiny-levels",
        _MASKED,
        {"num_steps": (1, 2, 2), **_HEAD},
        5,
    ),
    "video": (ClassToVideoPipeline, "patches-tiny", "flow-video-tiny", {"depth": 1}, {"num_steps": 3}, 3),
    "cascade": (
        ClassToShapePipeline,
        "pyramid-vae-tiny",
        "mar3d-tiny",
        {"depth": 1},
        {"num_steps": 2, "head_steps": 2, "extraction": ExtractionSettings(depth=3)},
        4,
    ),
}
Told = list[tuple[int, Any, dict[str, Any]]]


@pytest.fixture(scope="module")
def pipes() -> dict[str, HiergenPipeline]:
    made = {}
    for name, (kind, tokenizer, generator, options, *_) in FAMILIES.items():
        torch.manual_seed(0)
        reads = create(tokenizer).eval()
        makes = create(generator, level_specs=specs_to_json(reads.specs), **options).eval()
        for parameter in (*reads.parameters(), *makes.parameters()):
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        made[name] = kind(tokenizer=reads, generator=makes)
        made[name].set_progress_bar_config(disable=True)
    return made


def call(pipes: dict[str, HiergenPipeline], family: str, **options: Any) -> Any:
    rng = torch.Generator().manual_seed(0)
    return pipes[family]([3, 4], generator=rng, **{**FAMILIES[family][4], **options})


def first(result: Any) -> Any:
    return next(iter(result.values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_step_is_told_with_what_was_asked_for_and_goes_on_from_what_is_returned(pipes, family) -> None:
    told: Told = []

    def look(pipe, step, timestep, tensors):
        told.append((step, timestep, tensors))
        assert pipe is pipes[family]
        return tensors

    names = ["pyramid", "latents"]
    plain = call(pipes, family)
    made = call(pipes, family, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    total = FAMILIES[family][5]
    assert pipes[family].num_timesteps == total
    assert [step for step, _, _ in told] == list(range(total))
    assert all(sorted(tensors) == sorted(names) for *_, tensors in told)
    # A flow tells its time, which ends at 1.
    assert told[-1][1] == (1.0 if family in ("flow", "video") else total - 1)
    for before, after in zip(plain.pyramid.levels, made.pyramid.levels, strict=True):
        assert torch.equal(before, after)
    assert torch.equal(told[-1][2]["pyramid"].concat(), made.pyramid.concat())

    def change(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == total - 1 else tensors

    zeros = call(pipes, family, callback_on_step_end=change, callback_on_step_end_tensor_inputs=["latents"]).pyramid
    state = pipes[family].generator.tokens_of(torch.zeros_like(told[-1][2]["latents"]))
    assert torch.equal(zeros.levels[-1], state.levels[-1])


@pytest.mark.parametrize("family", ["ids", "levels", "cascade"])
def test_levels_that_are_changed_are_what_the_next_ones_are_made_from(pipes, family) -> None:
    # With two levels of ids, those of the first are in the cache when they are changed.
    count = 2 if family == "ids" else 1

    def change(pipe, step, timestep, tensors):
        pyramid = tensors["pyramid"]
        if pyramid is None or len(pyramid) != count:
            return tensors
        return {"pyramid": TokenPyramid(tuple(torch.ones_like(level) for level in pyramid.levels), pyramid.specs)}

    plain = call(pipes, family).pyramid
    made = call(pipes, family, callback_on_step_end=change).pyramid
    torch.testing.assert_close(made.levels[0], torch.ones_like(made.levels[0]))
    assert not torch.equal(plain.levels[-1], made.levels[-1])
    # As if the first level had come out so: the rest is what a generator without a cache makes of it.
    if family == "ids":
        slow = call(pipes, family, callback_on_step_end=change, use_cache=False).pyramid
        assert torch.equal(slow.concat(), made.concat())


def test_a_flow_that_is_changed_on_the_way_ends_elsewhere(pipes) -> None:
    def change(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] + 1} if step == 0 else {}

    made = call(pipes, "flow", callback_on_step_end=change, callback_on_step_end_tensor_inputs=["latents"])
    assert float((made.pyramid.concat() - call(pipes, "flow").pyramid.concat()).abs().min()) > 0

    def replace(pipe, step, timestep, tensors):
        pyramid = tensors["pyramid"]
        return {"pyramid": pyramid and TokenPyramid((pyramid.levels[0] * 2,), pyramid.specs)}

    made = call(pipes, "flow", callback_on_step_end=replace)
    torch.testing.assert_close(made.pyramid.concat(), 2 * call(pipes, "flow").pyramid.concat())


def test_callbacks_of_diffusers_name_their_tensors_themselves(pipes) -> None:
    class Halve(PipelineCallback):
        tensor_inputs = ["latents"]  # noqa: RUF012  # diffusers' name and type

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            return {"latents": callback_kwargs["latents"] / 2}

    made = call(pipes, "flow", callback_on_step_end=Halve(cutoff_step_ratio=None, cutoff_step_index=1))
    assert not torch.equal(made.pyramid.concat(), call(pipes, "flow").pyramid.concat())


def test_tensors_that_are_not_offered_are_refused_by_name(pipes) -> None:
    known = "'pyramid', 'latents', 'images'"
    with pytest.raises(ValueError, match=f"tensor_inputs hold 'prompt_embeds', expected some of {known}"):
        call(pipes, "flow", callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with pytest.raises(ValueError, match="tensor_inputs hold 'images', expected some of 'pyramid', 'latents'"):
        call(pipes, "cascade", callback_on_step_end_tensor_inputs=["images"])
    with pytest.raises(ValueError, match=f"callback_on_step_end returned hold 'latent', expected some of {known}"):
        call(pipes, "flow", callback_on_step_end=lambda *_: {"latent": torch.zeros(1)})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(1), r"returned 'latents' of shape \(1,\), expected shape \(2, 16, 8\) as it was given"),
        ("x", r"returned 'latents' of type str, expected shape \(2, 16, 8\)"),
    ],
)
def test_tensors_of_another_shape_are_refused(pipes, returned, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(pipes, "flow", callback_on_step_end=lambda *_: {"latents": returned})


def test_levels_of_another_number_are_refused(pipes) -> None:
    def shorten(pipe, step, timestep, tensors):
        return {"pyramid": tensors["pyramid"].prefix(1)} if step == 3 else tensors

    with pytest.raises(ValueError, match=r"returned 'pyramid' of 2 samples of .*, expected 2 samples of"):
        call(pipes, "ids", callback_on_step_end=shorten)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupt_ends_the_call_after_its_step_and_decodes_what_is_there(pipes, family) -> None:
    pipe, steps = pipes[family], []

    def stop(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    made = call(pipes, family, callback_on_step_end=stop)
    assert steps == [0, 1]
    assert pipe.interrupt
    assert len(first(made)) == 2
    whole = call(pipes, family)
    assert not pipe.interrupt, "a new call must begin anew"
    # Levels that are complete, or else the state.
    count = {"ids": 2, "levels": 1, "cascade": 1}.get(family)
    if count is None:
        assert made.pyramid.specs == whole.pyramid.specs
        assert not torch.equal(made.pyramid.concat(), whole.pyramid.concat())
    else:
        assert len(made.pyramid) == count
        assert torch.equal(made.pyramid.concat(), whole.pyramid.prefix(count).concat())


class Silent(Generator):
    """Shows no state: its callback is called as those of before were."""

    def generate(self, condition, settings=None, *, rng=None, callback=None):
        callback(0, None)
        raise AssertionError("the interrupt was not heard")

    specs = loss = None  # type: ignore[assignment]


def test_an_interrupt_without_any_state_is_explained(pipes, monkeypatch) -> None:
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True

    monkeypatch.setattr(type(pipes["flow"].generator), "generate", Silent.generate)
    with pytest.raises(
        RuntimeError, match="was interrupted before a level was complete, and its FlowTransformer shows"
    ):
        call(pipes, "flow", callback_on_step_end=stop)


def test_the_bar_is_that_of_diffusers_and_can_be_named_or_silenced(pipes, capsys) -> None:
    pipe = pipes["flow"]
    try:
        pipe.set_progress_bar_config(desc="digits")
        call(pipes, "flow")
        shown = capsys.readouterr().err
        assert "digits" in shown
        assert "3/3" in shown
    finally:
        pipe.set_progress_bar_config(disable=True)
    call(pipes, "flow")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("family", ["ids", "video", "cascade"])
def test_parts_are_moved_before_they_run_where_the_model_is_offloaded(pipes, family, monkeypatch) -> None:
    """The processor stands in for the accelerator: what moves is seen by the hooks that accelerate attaches."""
    pipe, moved = pipes[family], []
    expected = call(pipes, family)
    arrive = CpuOffload.pre_forward

    def seen(hook: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        moved.append(type(module).__name__)
        return arrive(hook, module, *args, **kwargs)

    monkeypatch.setattr(CpuOffload, "pre_forward", seen)
    generate, at_start = pipe.generator.generate, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        at_start.append(moved[-1])
        return generate(*args, **kwargs)

    pipe.enable_model_cpu_offload(device="cpu")
    try:
        monkeypatch.setattr(pipe.generator, "generate", watched)
        preview = [name for name in pipe._callback_tensor_inputs if name != "latents"]
        made = call(pipes, family, callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=preview)
        names = [type(pipe.generator).__name__, type(pipe.tokenizer).__name__]
        assert at_start == names[:1]
        assert moved[-1] == names[1]
        # After each preview the generator is back.
        previews = [now for now, after in itertools.pairwise(moved) if (now, after) == (names[1], names[0])]
        assert len(previews) == {"ids": 6, "video": 1, "cascade": 0}[family]
        assert torch.equal(made.pyramid.levels[-1], expected.pyramid.levels[-1])
        assert [hook.hook.execution_device.type for hook in pipe._all_hooks] == ["cpu", "cpu"], "hooks must stay"
    finally:
        pipe.remove_all_hooks()


def test_offloading_of_submodules_is_refused_with_what_to_call(pipes) -> None:
    for name in ("enable_sequential_cpu_offload", "enable_group_offload"):
        with pytest.raises(ValueError, match=r"ClassToImagePipeline moves only whole parts: use enable_model_cpu_off"):
            getattr(pipes["flow"], name)(device="cpu")


def test_other_switches_of_diffusers_do_no_harm(pipes) -> None:
    pipe = pipes["flow"]
    expected = call(pipes, "flow").pyramid
    pipe.enable_attention_slicing()
    pipe.disable_attention_slicing()
    assert torch.equal(call(pipes, "flow").pyramid.concat(), expected.concat())
