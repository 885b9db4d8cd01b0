"""Put pyramid sparse attention into diffusers' video transformers by one call, and take it out by another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from hiergen.kernels.pyramid_attention import PSAConfig, psa_preset
from hiergen.kernels.pyramid_attention.attention import BACKENDS
from hiergen.video.adapter import ATTRIBUTE, TransformerAdapter
from hiergen.video.architectures import Architecture, architecture_of
from hiergen.video.processors import AttentionSettings
from hiergen.video.statistics import CallStatistics, Recorder
from hiergen.video.steps import StepCounter


class PyramidAttentionHandle:
    """Pyramid attention that was applied to one or more transformers; a context manager that removes it at the end.

    Attributes:
        config: Settings of the attention.
        warmup_steps: How many of the first sampling steps are dense.
    """

    def __init__(self, transformers: Sequence[nn.Module], settings: AttentionSettings) -> None:
        self._transformers = transformers
        self._settings = settings
        self.config = settings.config
        self.warmup_steps = settings.counter.warmup_steps

    @property
    def statistics(self) -> list[CallStatistics]:
        """All calls so far of the layers that are not kept dense, in order; waits for the device.

        Raises:
            ValueError: If statistics were not asked for.
        """
        if self._settings.recorder is None:
            raise ValueError("no statistics were collected; call apply_pyramid_attention with collect_statistics=True")
        return self._settings.recorder.read()

    def set_step(self, step: int) -> None:
        """Say which sampling step comes next, from 0; from then on it is not read from the timesteps.

        For transformers compiled whole into one graph, which cannot look at the value of a timestep.
        """
        self._settings.counter.set_step(step)

    def reset(self) -> None:
        """Say that a new video begins; needed only between one-step videos (see `StepCounter`)."""
        self._settings.counter.reset()

    def remove(self) -> None:
        """Put the transformers back as they were."""
        remove_pyramid_attention(self._transformers)

    def __enter__(self) -> PyramidAttentionHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def apply_pyramid_attention(
    model: Any,
    preset: PSAConfig | str,
    *,
    num_inference_steps: int | None = None,
    warmup_steps: int | None = None,
    dense_layers: Iterable[int] = (),
    collect_statistics: bool = False,
    backend: str = "auto",
) -> PyramidAttentionHandle:
    """Put pyramid sparse attention in the place of a video transformer's self-attention; everything else stays.

    Cross-attention (text, and image keys of image-to-video models) stays dense. Text that shares the sequence with the
    video is read in full by all tokens and reads all tokens in full. The first sampling steps are dense; steps are told by the
    timesteps that the transformer is given, so guidance in two passes, guidance in one batch and no guidance count alike.

    Args:
        model: A transformer of diffusers (`ARCHITECTURES` lists the classes), several of them, or a pipeline, whose
            transformers are all taken. Several transformers count their steps together.
        preset: Settings or a preset's name.
        num_inference_steps: Sampling steps of the run. The settings' `warmup_steps` is scaled to it from the number of steps
            that it was chosen for; None takes `warmup_steps` as it is.
        warmup_steps: Dense steps, instead of the settings' number. 0 for training.
        dense_layers: Numbers of layers that stay dense, from 0; negative numbers count from the end.
        collect_statistics: Whether to record density and time of every call. It is slower, and splits compiled graphs.
        backend: How the operation runs; see `pyramid_sparse_attention`.

    Returns:
        A handle: `remove()` or the end of a `with` block undoes everything; `statistics` holds what was recorded.

    Raises:
        TypeError: If the class of a model is unknown.
        ValueError: If a model has pyramid attention already, runs under context parallelism, or an argument is out of range.
    """
    config = psa_preset(preset) if isinstance(preset, str) else preset
    check_backend(backend)
    dense_layers = tuple(dense_layers)
    transformers = _transformers_of(model)
    planned = [(transformer, *_checked(transformer, dense_layers)) for transformer in transformers]
    counter = StepCounter(_warmup(config, num_inference_steps, warmup_steps), is_needed=collect_statistics)
    settings = AttentionSettings(config, counter, backend, Recorder() if collect_statistics else None)
    for transformer, architecture, dense in planned:
        TransformerAdapter(transformer, architecture, settings, dense)
    return PyramidAttentionHandle(transformers, settings)


def remove_pyramid_attention(model: Any) -> None:
    """Put transformers back as they were before `apply_pyramid_attention`: their own processors, no hooks.

    Args:
        model: What `apply_pyramid_attention` was given, or its transformers.

    Raises:
        ValueError: If none of the transformers has pyramid attention.
    """
    found = [(transformer, vars(transformer).get(ATTRIBUTE)) for transformer in _transformers_of(model)]
    if all(adapter is None for _, adapter in found):
        raise ValueError("the model has no pyramid attention to remove; apply_pyramid_attention puts it in")
    for transformer, adapter in found:
        if adapter is not None:
            adapter.detach(transformer)


def _transformers_of(model: Any) -> list[nn.Module]:
    """Return the transformers of a pipeline, a sequence or one transformer, without the shell of `torch.compile`."""
    if isinstance(model, nn.Module):
        found: list[Any] = [model]
    elif isinstance(model, (list, tuple)):
        found = list(model)
    else:
        found = [getattr(model, name, None) for name in ("transformer", "transformer_2")]
    found = [getattr(one, "_orig_mod", one) for one in found if one is not None]
    if not found or not all(isinstance(one, nn.Module) for one in found):
        raise TypeError(
            f"model is a {type(model).__name__}, expected a transformer of diffusers, several in a list, or a pipeline "
            "with a transformer"
        )
    return found


def _checked(transformer: nn.Module, dense_layers: Sequence[int]) -> tuple[Architecture, set[int]]:
    """Return a transformer's architecture, and its dense layers counted from 0."""
    architecture = architecture_of(transformer)
    if vars(transformer).get(ATTRIBUTE) is not None:
        raise ValueError(
            f"this {type(transformer).__name__} has pyramid attention already; call remove_pyramid_attention first"
        )
    attentions = architecture.attentions(transformer)
    if any(getattr(attention.processor, "_parallel_config", None) is not None for attention in attentions):
        raise ValueError(
            f"this {type(transformer).__name__} runs under context parallelism, which splits the sequence that pyramid "
            "attention looks at as a whole; load it without"
        )
    dense = set()
    for layer in dense_layers:
        if not -len(attentions) <= layer < len(attentions):
            raise ValueError(f"dense_layers holds {layer}, expected numbers of {len(attentions)} layers")
        dense.add(layer % len(attentions))
    return architecture, dense


def check_backend(name: str) -> None:
    """Check a backend's name before the first sparse step, which may be minutes away.

    Raises:
        ValueError: If pyramid attention has no such backend.
    """
    names = ["auto", *(backend.name for backend in BACKENDS)]
    if name not in names:
        raise ValueError(f"backend is {name!r}, expected one of {', '.join(map(repr, names))}")


def _warmup(config: PSAConfig, num_inference_steps: int | None, warmup_steps: int | None) -> int:
    if warmup_steps is not None:
        if num_inference_steps is not None:
            raise ValueError("warmup_steps and num_inference_steps were both given, expected one of them")
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps is {warmup_steps}, expected a number of sampling steps")
        return warmup_steps
    if num_inference_steps is None:
        return config.warmup_steps
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}, expected at least 1")
    return round(config.warmup_steps * num_inference_steps / config.num_steps)
