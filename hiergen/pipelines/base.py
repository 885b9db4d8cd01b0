"""What hiergen's pipelines share: how a saved pipeline names its parts, how labels are read, and what is told after a step."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from hiergen.files import atomic_path
from hiergen.generators.base import Generator
from hiergen.generators.conditioning import Unconditional
from hiergen.pipelines.arguments import Generators, Labels, check_count, check_output_type, read_generators, read_labels
from hiergen.pipelines.card import CardedPipeline
from hiergen.pipelines.labels import NamedClasses, number_classes
from hiergen.pipelines.mixins.lora import LoraPipeline
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import Rng
from hiergen.tokenizers.base import Tokenizer

#: Called after each generation step, as diffusers' are, with the pipeline, the step's index, the time that a flow has reached (for other
#: generators the index again), and the tensors that were asked for by name. It returns these, or others to go on from.
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]

#: What diffusers runs where `DiffusionPipeline.from_pretrained` is given `custom_pipeline="pipeline"` and `trust_remote_code=True`.
_PIPELINE_FILE = '''"""Lets DiffusionPipeline find the class of this pipeline; `hiergen.from_pretrained` does not need it."""

from hiergen import {name}

__all__ = ["{name}"]
'''


class HiergenPipeline(NamedClasses, CardedPipeline, DiffusionPipeline, LoraPipeline):
    """A diffusers pipeline of hiergen's models: a generator and the tokenizer it was trained for.

    Raises:
        ValueError: If the generator was trained for the levels of another tokenizer.
    """

    tokenizer: Tokenizer[Any]
    generator: Generator

    #: What is made of a label, in words.
    unit: ClassVar[str] = "image"
    #: The kinds of output, the default first.
    output_types: ClassVar[tuple[str, ...]] = ("pil", "np", "pt")
    #: The tensors that a callback may ask for: "pyramid", the complete levels or None before the first; "latents", the state of the
    #: generator (standardized tokens `(b, n, c)` of a flow or a masked generator, 0 where a token is hidden; ids `(b, n)` of a
    #: `LevelAR`). Others put in their place are gone on from; a preview ("images", "frames") is shown only.
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("pyramid", "latents")
    model_cpu_offload_seq = "image_encoder->generator->tokenizer"  # type: ignore[assignment]  # declared as its default, None
    _interrupt = False
    _num_timesteps = 0

    def __init__(self, tokenizer: Tokenizer[Any], generator: Generator) -> None:
        super().__init__()
        generator.check_tokenizer(tokenizer.specs)
        self.register_modules(tokenizer=tokenizer, generator=generator)

    def register_modules(self, **modules: Any) -> None:
        """Register the parts under the package's public names, so that a saved pipeline does not depend on where they live."""
        super().register_modules(**modules)
        self.register_to_config(**{name: ("hiergen", type(module).__name__) for name, module in modules.items()})

    @property
    def interrupt(self) -> bool:
        """Whether the call that runs is to end after its step: a callback or another thread sets `_interrupt`, as in diffusers.

        What is made by then is decoded: the complete levels if they can be, or else the state, as unfinished as it is.
        """
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the last call."""
        return self._num_timesteps

    def compile(self, **options: Any) -> HiergenPipeline:
        """Compile what generating repeats, in place: `compile_sampling` of the generator, `compile_decoding` of the tokenizer.

        Args:
            options: Arguments of `torch.compile`.
        """
        self.generator.compile_sampling(**options)
        self.tokenizer.compile_decoding(**options)
        return self

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: parts are called by `generate` and `decode`, and submodules that are moved one by one see `forward` alone.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{type(self).__name__} moves only whole parts: use enable_model_cpu_offload() instead")

    enable_group_offload = enable_sequential_cpu_offload

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Save the config as diffusers does, with a `pipeline.py` beside it by which `DiffusionPipeline` finds the class.

        `hiergen.from_pretrained` reads the name of the class alone and never runs the file.
        """
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)
        name = type(self).__name__
        with atomic_path(Path(save_directory) / "pipeline.py") as temporary:
            temporary.write_text(_PIPELINE_FILE.format(name=name), encoding="utf-8")

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[Any, ...]]:
        """Return the classes of the parts: diffusers reads no annotations that are text, and warns of each."""
        hints = typing.get_type_hints(cls.__init__)
        return {name: (typing.get_origin(kind) or kind,) for name, kind in hints.items() if name != "return"}

    def _condition(
        self, class_labels: Labels, per_label: int, count: int | None, generator: Generators, output_type: str
    ) -> tuple[Tensor | Unconditional, Rng | None]:
        """Return the condition of every sample and the source of its draws, with all arguments checked.

        Args:
            class_labels: Labels or names, each of which is repeated `per_label` times; None for samples without a class.
            per_label: Number of samples of each label.
            count: Number of samples without a class.
            generator: Source of the draws.
            output_type: Kind of output.
        """
        check_output_type(output_type, self.output_types)
        each, all_of_them = f"num_{self.unit}s_per_label", f"num_{self.unit}s"
        check_count(each, per_label)
        if class_labels is not None:
            if count is not None:
                raise ValueError(
                    f"{all_of_them} is {count} beside class_labels, expected {each}: it counts those without a class"
                )
            numbers = number_classes(class_labels, self.class_names)
            labels = read_labels(numbers).to(moved(self.generator).device).repeat_interleave(per_label)
            return labels, read_generators(generator, len(labels), self.unit)
        if not self.generator.makes_unconditional:
            raise ValueError(
                f"class_labels is None, but this {type(self.generator).__name__} makes nothing without a class: "
                "its labels were never dropped in training"
            )
        total = per_label if count is None else check_count(all_of_them, count) * per_label
        return Unconditional(total), read_generators(generator, total, self.unit)

    def _decode(self, pyramid: TokenPyramid) -> Tensor:
        """Return the images or clips of a pyramid, clamped to [-1, 1].

        Raises:
            FloatingPointError: If one holds NaN or infinity.
        """
        decoded = moved(self.tokenizer).decode(pyramid.to(self.tokenizer.device))
        broken = (~decoded.isfinite()).flatten(1).any(dim=1)
        if bool(broken.any()):
            raise FloatingPointError(
                f"{type(self).__name__}: {self.unit} {int(broken.int().argmax())} of {len(decoded)} holds NaN or infinity, decoded by "
                f"{type(self.tokenizer).__name__} from {len(pyramid)} of {len(self.tokenizer.specs)} levels"
            )
        return decoded.clamp(-1, 1)

    def _generate(
        self,
        condition: Any,
        settings: dict[str, Any],
        rng: Rng | None,
        callback: StepCallback | None,
        tensor_inputs: Sequence[str],
    ) -> TokenPyramid:
        """Return the tokens of a condition, with a progress bar, a callback and the chance to be interrupted.

        Args:
            condition: What the generator takes.
            settings: Fields of the generator's settings.
            rng: Source of the draws.
            callback: The caller's callback.
            tensor_inputs: Names of the tensors that it asks for.

        Raises:
            ValueError: If a tensor of this name is not offered.
        """
        if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
            tensor_inputs = callback.tensor_inputs
        check_tensor_inputs("callback_on_step_end_tensor_inputs", tensor_inputs, self._callback_tensor_inputs)
        # A generator in general takes labels, a cascade features too.
        generator: Any = moved(self.generator)
        chosen = generator.make_settings(**settings)
        self._interrupt, self._num_timesteps = False, generator.count_steps(chosen)
        with self.progress_bar(total=self._num_timesteps) as bar:
            report = _Report(self, callback, tensor_inputs, bar)
            try:
                made: TokenPyramid = generator.generate(condition, chosen, rng=rng, callback=report)
            except _InterruptedError:
                made = report.unfinished()
        return made

    def _previews(self, pyramid: TokenPyramid | None) -> dict[str, Any]:
        """Return what else a callback may look at, by name, computed when it is asked for."""
        return {}


class _InterruptedError(Exception):
    """The pipeline was interrupted."""


class _Report:
    """Hands each step of a generator on to the progress bar and the callback of a pipeline."""

    def __init__(self, pipe: HiergenPipeline, callback: StepCallback | None, names: Sequence[str], bar: Any) -> None:
        self._pipe, self._callback, self._names, self._bar = pipe, callback, names, bar
        self._pyramid: TokenPyramid | None = None
        self._latents: Tensor | None = None

    def __call__(
        self, step: int, pyramid: TokenPyramid | None, *, latents: Tensor | None = None, time: float | None = None
    ) -> TokenPyramid | Tensor | None:
        self._pyramid, self._latents = pyramid, latents
        changed = None
        if self._callback is not None:
            changed = self._tell(self._callback, step, step if time is None else time)
        self._bar.update()
        if self._pipe.interrupt:
            raise _InterruptedError
        return changed

    def unfinished(self) -> TokenPyramid:
        """Return the tokens of the last step: the most complete levels that can be decoded, or else the state."""
        complete = 0 if self._pyramid is None else len(self._pyramid)
        counts = [count for count in self._pipe.tokenizer.decodable_levels if count <= complete]
        if self._pyramid is not None and counts:
            return self._pyramid.prefix(counts[-1])
        if self._latents is None:
            raise RuntimeError(
                f"{type(self._pipe).__name__} was interrupted before a level was complete, "
                f"and its {type(self._pipe.generator).__name__} shows no state to decode"
            )
        return self._pipe.generator.tokens_of(self._latents)

    def _tell(self, callback: StepCallback, step: int, timestep: Any) -> TokenPyramid | Tensor | None:
        """Call the callback; return what it changed, None for nothing."""
        offered = {"pyramid": self._pyramid, "latents": self._latents}
        previews = self._pipe._previews(self._pyramid)
        shown = {name: previews[name]() if name in previews else offered[name] for name in self._names}
        # Where parts are moved by turns, a preview has sent the generator away.
        moved(self._pipe.generator)
        returned = callback(self._pipe, step, timestep, dict(shown))
        if returned is None:
            return None
        check_tensor_inputs(
            "the keys of what callback_on_step_end returned", returned, self._pipe._callback_tensor_inputs
        )
        changed = None
        for name in offered:
            new, old = returned.get(name), offered[name]
            if new is not None and new is not old:
                _check_like(name, new, old)
                changed = new
                self._pyramid, self._latents = (new, self._latents) if name == "pyramid" else (self._pyramid, new)
        return changed


def check_tensor_inputs(argument: str, names: Any, known: Sequence[str]) -> None:
    """Check the names of tensors of a callback.

    Raises:
        ValueError: If one is not offered, with all that are.
    """
    for name in names:
        if name not in known:
            raise ValueError(f"{argument} hold {name!r}, expected some of {', '.join(map(repr, known))}")


def _check_like(name: str, new: Any, old: Any) -> None:
    """Raise a ValueError unless what a callback returned can take the place of what it was given."""

    def like(value: Any) -> Any:
        if isinstance(value, TokenPyramid):
            return f"{value.batch_size} samples of {value.specs}"
        return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"

    if like(new) != like(old):
        raise ValueError(f"callback_on_step_end returned {name!r} of {like(new)}, expected {like(old)} as it was given")


def moved(model: Any) -> Any:
    """Return a part, on the device where it runs: `enable_model_cpu_offload` moves by itself what is called by `forward` alone."""
    hook = getattr(model, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(model)
    return model


def to_arrays(decoded: Tensor) -> Any:
    """Return images `(b, 3, h, w)` or clips `(b, 3, t, h, w)` of [-1, 1] as float32 arrays of [0, 1], the channels last."""
    return decoded.movedim(1, -1).to("cpu", torch.float32).add(1).div(2).numpy()
