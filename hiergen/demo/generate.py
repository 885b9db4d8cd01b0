"""Tab "Generate": pictures of a class, level by level as they are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.inputs import add_buttons, add_guidance, add_seed
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.pictures import montage
from hiergen.demo.reconstruct import information
from hiergen.demo.requests import GUIDANCE, MAX_SEED, SEED, check_label, check_ranges, to_seed
from hiergen.demo.steps import stream_steps, thinned
from hiergen.pyramid import TokenPyramid

MAX_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0.
        count: Number of pictures.
        guidance_scale: Guidance scale; 1 is no guidance.
        temperature: Temperature of the draws; generators that have none do not read it.
        seed: Seed of all random draws.
    """

    label: int
    count: int = 4
    guidance_scale: float = 1.5
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, count=(1, MAX_IMAGES), guidance_scale=GUIDANCE, temperature=(0, 4), seed=SEED)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a generation is.

    Attributes:
        step: Number of steps done.
        levels: The complete levels so far, coarse to fine; for each a sheet of all pictures, with a caption.
        is_done: Whether this is the result.
    """

    step: int
    levels: tuple[tuple[Image.Image, str], ...]
    is_done: bool


def has_setting(entry: DemoModel, name: str) -> bool:
    """Return whether the generator of a model knows a setting."""
    return name in {field.name for field in dataclasses.fields(entry.generator.settings_class)}


def generate(entry: DemoModel, request: GenerateRequest, *, seconds: float) -> Iterator[Progress]:
    """Yield the progress of a generation; the last one is the result.

    Raises:
        ValueError: If the class is unknown or a setting out of range.
        StoppedError: If it took longer than `seconds`.
    """
    check_label(entry, request.label)
    chosen = {**entry.notes.sampling, "guidance_scale": request.guidance_scale}
    if has_setting(entry, "temperature"):
        chosen["temperature"] = request.temperature
    levels: list[tuple[Image.Image, str]] = []

    def run(report: Callable[[Progress], None]) -> None:
        def show(pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
            pyramid = shown["pyramid"]
            if pyramid is not None and len(pyramid) > len(levels):
                levels.append((_sheet(shown["images"]), _caption(pyramid)))
            report(Progress(step + 1, tuple(levels), is_done=False))
            return shown

        result = entry.model(
            request.label,
            num_images_per_label=request.count,
            generator=torch.Generator(entry.model.device).manual_seed(request.seed),
            callback_on_step_end=show,
            callback_on_step_end_tensor_inputs=("pyramid", "images"),
            output_type="pt",
            **chosen,
        )
        final = (_sheet(result.images), _caption(result.pyramid))
        report(Progress(0, (*levels[: len(result.pyramid) - 1], final), is_done=True))

    yield from stream_steps(run, seconds=seconds)


def _sheet(images: torch.Tensor) -> Image.Image:
    return montage(to_pictures(images))


def _caption(pyramid: TokenPyramid) -> str:
    return f"{pyramid.num_tokens} token{'s' * (pyramid.num_tokens > 1)}, {information(pyramid.specs)} per picture"


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_generators()

    def run(
        title: str, label: int, count: float, guidance_scale: float, temperature: float, seed: float | None
    ) -> Iterator[tuple[Any, ...]]:
        request = GenerateRequest(int(label), int(count), float(guidance_scale), float(temperature), to_seed(seed))
        yield from _updates(generate(library.get(title), request, seconds=page.settings.max_seconds))

    def change(title: str) -> tuple[Any, ...]:
        entry = library.get(title)
        return (
            gr.Dropdown(choices=entry.choices(), value=min(3, entry.num_classes - 1)),
            gr.Slider(value=entry.usual_guidance(1.5)),
            gr.Slider(interactive=has_setting(entry, "temperature")),
            entry.about,
        )

    first = library.get(titles[0])
    is_warm, usual_class = has_setting(first, "temperature"), min(3, first.num_classes - 1)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model")
            about = gr.Markdown(first.about, elem_classes="about")
            label = gr.Dropdown(first.choices(), value=usual_class, label="Class", elem_id="generate-class")
            count = gr.Slider(1, MAX_IMAGES, value=4, step=1, label="Pictures")
            guidance = add_guidance(first.usual_guidance(1.5))
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", interactive=is_warm)
            with gr.Row():
                seed = add_seed()
                again = gr.Button("Another seed", min_width=100, elem_id="generate-again")
            start, stop = add_buttons("generate")
        with gr.Column(scale=2, min_width=300):
            shown = page.picture("Generated", name="generate-shown", height=360)
            status = gr.Markdown(elem_id="generate-status", elem_classes="status")
            strip = page.row("Level by level, as they were made", name="generate-levels")
    model.input(change, model, [label, guidance, temperature, about], queue=False, api_visibility="private")
    inputs, outputs = [model, label, count, guidance, temperature, seed], [shown, strip, status]
    # One at a time: a second press while the first runs does nothing.
    event = {**page.event, "trigger_mode": "once", "show_progress_on": status}
    started = start.click(explained(run), inputs, outputs, api_name="generate", **event)
    reseeded = again.click(None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED})", queue=False)
    restarted = reseeded.then(explained(run), inputs, outputs, api_visibility="private", **event)
    page.stops(stop, status, [started, restarted])


def _updates(steps: Iterator[Progress]) -> Iterator[tuple[Any, ...]]:
    """Yield the picture, the strip of levels and the status; steps that complete no level change the status alone."""
    import gradio as gr

    sent = 0
    with picture_files() as png:
        for now in thinned(steps, lambda now: (len(now.levels), now.is_done)):
            if now.is_done or len(now.levels) > sent:
                sent = len(now.levels)
                levels = [(png(picture), caption) for picture, caption in now.levels]
                yield levels[-1][0], levels, _status(now)
            else:
                yield gr.skip(), gr.skip(), _status(now)


def _status(now: Progress) -> str:
    if now.is_done:
        return f"Done: {now.levels[-1][1]}."
    return f"Step {now.step}: {len(now.levels)} level{'s' * (len(now.levels) != 1)} complete."
