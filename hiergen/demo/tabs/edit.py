"""Tab "Edit": what is painted over is made anew, fine levels are drawn again, or those of another picture are taken."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.asking import add_asking, menu_path, title_of, told
from hiergen.demo.inputs import (
    add_buttons,
    add_guidance,
    add_picture,
    add_seed,
    choose_image,
    examples_of,
    hidden_inputs,
    picked,
)
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, cached, explained, picture_files
from hiergen.demo.painting import add_painter, background
from hiergen.demo.pictures import open_upload
from hiergen.demo.requests import GUIDANCE, SEED, check_asked, check_ranges, to_seed
from hiergen.demo.stage import View, draw_stage, result
from hiergen.demo.steps import stream_steps, thinned
from hiergen.telling import counted

#: Number of finished results that the tab opens with.
NUM_READY = 4
#: What can be done with a picture, and how it is called.
PAINT, VARY, BLEND = "paint", "vary", "blend"
WAYS = {
    PAINT: "Make anew what I paint over",
    VARY: "Draw its fine levels again",
    BLEND: "Take the fine levels of another",
}


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """What is asked for.

    Attributes:
        way: "paint", "vary" or "blend".
        label: Class of what is made, from 0; with a class hierarchy any node. A blend makes nothing, and a model of texts does not read it.
        strength: How much a flow changes, 0 to 1.
        keep_levels: Number of levels that stay, for "vary".
        guidance_scale: Guidance scale; 1 is no guidance.
        seed: Seed of all random draws.
        prompt: What a model of texts is told.
        negative_prompt: What its guidance moves away from; "" is no text.
    """

    way: str = PAINT
    label: int = 0
    strength: float = 1.0
    keep_levels: int = 1
    guidance_scale: float = 1.5
    seed: int = 0
    prompt: str = ""
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        check_ranges(self, strength=(0, 1), keep_levels=(0, 100), guidance_scale=GUIDANCE, seed=SEED)
        if self.way not in WAYS:
            raise ValueError(f"way is {self.way!r}, expected {', '.join(map(repr, WAYS))}")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far an edit is: steps done and of the whole, and at its end what the stage shows."""

    step: int
    steps: int
    views: tuple[View, ...] = ()


def num_levels(entry: DemoModel) -> int:
    """Return of how many levels a model can keep some; 0 where it makes all in one."""
    levels = len(entry.tokenizer.specs)
    return levels if levels > 1 and "levels" in entry.generator.takes_known else 0


def ways(entry: DemoModel) -> list[tuple[str, str]]:
    """Return what a model can do with a picture, as a menu has it."""
    return [(WAYS[way], way) for way in (WAYS if num_levels(entry) else (PAINT,))]


def edit(
    entry: DemoModel,
    request: EditRequest,
    image: Tensor,
    *,
    mask: np.ndarray | None = None,
    other: Tensor | None = None,
    seconds: float,
) -> Iterator[Progress]:
    """Yield the progress of an edit; the last one holds the result.

    Args:
        entry: The model.
        request: What is asked for.
        image: The picture, `(1, 3, size, size)` in [-1, 1].
        mask: Where it was painted over, `(h, w)`; None makes all of it anew.
        other: The picture whose fine levels a blend takes, as `image`.
        seconds: Time limit.

    Raises:
        ValueError: If the class is unknown, there are no words, or a setting is out of range.
        StoppedError: If it took longer than `seconds`.
    """
    if request.way == BLEND:
        yield Progress(0, 0, _blends(entry, image, image if other is None else other))
        return
    check_asked(entry, request)
    asked, more = told(entry, request)
    chosen = {**entry.notes.sampling, "guidance_scale": request.guidance_scale}
    chosen |= {"generator": torch.Generator(entry.model.device).manual_seed(request.seed), "output_type": "pt"}
    chosen |= more
    is_flow = entry.model.starts_from_images

    def run(report: Callable[[Progress], None]) -> None:
        def follow(pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
            report(Progress(step + 1, pipe.num_timesteps))
            return shown

        chosen["callback_on_step_end"] = follow
        if request.way == VARY:
            made = entry.model.vary(image, asked, keep_levels=request.keep_levels, **chosen)
        else:
            kept = request.keep_levels / num_levels(entry) if num_levels(entry) else 0.0
            chosen["strength"] = request.strength if is_flow else 1 - kept
            made = entry.model.edit(image, mask, asked, **chosen)
        report(Progress(0, 0, (_view(entry, request, image, made.images, mask),)))

    yield from stream_steps(run, seconds=seconds)


def _view(entry: DemoModel, request: EditRequest, image: Tensor, made: Tensor, mask: np.ndarray | None) -> View:
    before, after = _marked(to_pictures(image)[0], mask), to_pictures(made)[0]
    name, levels = title_of(entry, request), num_levels(entry)
    if request.way == PAINT and mask is not None:
        what = "what was painted over is made anew"
    else:
        what = (
            f"{counted(request.keep_levels, 'level')} of {levels} kept" if levels else f"strength {request.strength:g}"
        )
    alts = ("The picture before", f"The picture after: {name}, {what}, seed {request.seed}")
    return View((before, after), name, what, alts, ("before", "after"))


def _marked(picture: Image.Image, mask: np.ndarray | None) -> Image.Image:
    """Return a picture with a blue veil where it was painted over."""
    if mask is None:
        return picture
    veil = Image.fromarray(mask.astype(np.uint8) * 130).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", picture.size, (37, 99, 235)), picture, veil)


def make_ready(entry: DemoModel, *, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Return finished edits of a model's examples, of which the middle is made anew, as many as are done within some seconds."""
    made: list[dict[str, Any]] = []
    started = time.monotonic()
    images, _ = examples_of(entry)
    y, x = np.ogrid[-1:1:64j, -1:1:64j]
    for number in range(NUM_READY):
        if time.monotonic() - started >= seconds:
            break
        prompts = entry.notes.prompts or ("",)
        request = EditRequest(
            label=number % max(entry.num_classes, 1),
            guidance_scale=entry.usual_guidance(1.5),
            keep_levels=0,
            prompt=prompts[number % len(prompts)],
        )
        middle = images[number : number + 1]
        *_, last = edit(entry, request, middle, mask=x**2 + y**2 < 0.3, seconds=limit)
        made.append(_entry(entry, request, last.views))
    return made


def _blends(entry: DemoModel, image: Tensor, other: Tensor) -> tuple[View, ...]:
    """Return the coarse levels of one picture with the fine ones of another, for every number of levels."""
    levels = len(entry.tokenizer.specs)
    first, second = to_pictures(image)[0], to_pictures(other)[0]
    views = []
    for count in range(levels + 1):
        made = entry.model.blend(image, other, keep_levels=count, output_type="pt").images
        last = f"{count} coarse levels of the first picture, the rest of the second"
        alts = ("The first picture", "The second picture", last)
        # What was made comes last: the slider shows it.
        shown = (first, second, to_pictures(made)[0])
        views.append(View(shown, f"{count} of {levels}", "levels of the first", alts, ("coarse", "fine", "both")))
    return tuple(views)


def _entry(entry: DemoModel, request: EditRequest, views: Sequence[View]) -> dict[str, Any]:
    """Return the entry of the strip of results; its small picture is what was made."""
    name = "blend" if request.way == BLEND else title_of(entry, request)
    made = [View((view.pictures[-1],), view.name, view.size, view.alt[-1]) for view in views]
    found = result(
        made, title=name, line="", chosen={**dataclasses.asdict(request), "path": menu_path(entry, request.label)}
    )
    return {**found, "stage": draw_stage(views)}


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_editors()
    first, limits = library.get(titles[0]), page.settings
    images, label = examples_of(first)
    ready = make_ready(first, seconds=limits.ready_seconds, limit=limits.max_seconds)
    most = max(num_levels(library.get(title)) for title in titles)
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage(ready, "Paint over a part of the picture and press Generate.", name="edit-stage")
            status = page.status("edit-status")
            strip, made = page.strip(ready, name="edit-strip")
        with gr.Column(scale=4, min_width=300):
            model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="edit-model")
            way = gr.Radio(
                ways(first), value=PAINT, label="What to do", visible=len(ways(first)) > 1, elem_id="edit-way"
            )
            painter = add_painter(to_pictures(images)[0], name="edit-painter", max_bytes=limits.max_upload_mb * 2**20)
            with gr.Accordion("Another picture", open=False, elem_id="edit-pictures"):
                inputs = add_picture(to_pictures(images), name="edit", label=label, example=0)
            with gr.Group(visible=False) as second:
                other = gr.Dropdown(
                    _numbers(len(images)), value=1, label="Fine levels of example", elem_id="edit-other"
                )
            asking = add_asking(library, titles, name="edit", chosen=_first_class(first))
            levels = gr.Slider(
                *(0, most),
                value=most // 2,
                step=1,
                label="Levels kept",
                visible=num_levels(first) > 0,
                elem_id="edit-levels",
            )
            start, stop = add_buttons("edit")
            with gr.Accordion("Settings", open=False, elem_id="edit-settings"):
                strength = gr.Slider(
                    *(0, 1),
                    value=1,
                    step=0.05,
                    label="Strength: how much may change",
                    visible=first.model.starts_from_images,
                    elem_id="edit-strength",
                )
                guidance = add_guidance(first.usual_guidance(1.5))
                seed, is_new = add_seed("edit")

    def run(title: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        entry, (*asked, what, mask, upload, example, fine, much, kept, scale, number) = library.get(title), values
        request = EditRequest(
            what,
            **asking.read(entry, asked),
            strength=float(much),
            keep_levels=min(int(kept), num_levels(entry)),
            guidance_scale=float(scale),
            seed=to_seed(number),
        )
        image = choose_image(entry, upload, int(example), max_pixels=limits.max_pixels)
        second_image = choose_image(entry, None, int(fine), max_pixels=limits.max_pixels)
        steps = edit(entry, request, image, mask=mask, other=second_image, seconds=limits.max_seconds)
        yield from _updates(entry, request, steps)

    def show(title: str, upload: bytes | None, example: float) -> dict[str, Any]:
        entry = library.get(title)
        image = choose_image(entry, upload, int(example), max_pixels=limits.max_pixels)
        return background(to_pictures(image)[0])

    def change(title: str) -> tuple[Any, ...]:
        entry, count = library.get(title), num_levels(library.get(title))
        examples, caption = examples_of(entry)
        return (
            gr.Gallery(value=[cached(picture) for picture in to_pictures(examples)], label=caption),
            gr.Radio(choices=ways(entry), value=PAINT, visible=count > 0),
            gr.Slider(visible=entry.model.starts_from_images),
            gr.Slider(maximum=max(count, 1), value=count // 2, visible=count > 0),
            gr.Slider(value=entry.usual_guidance(1.5)),
            *asking.show(entry, _first_class(entry)),
        )

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    shown = [model, inputs.upload, inputs.example]
    model.input(change, model, [inputs.examples, way, strength, levels, guidance, *asking.outputs], **quick)
    for trigger in (model.input, inputs.upload.upload, picked(inputs).success):
        # Not outside of the queue, where a refusal is not told to anybody.
        trigger(explained(show), shown, painter, **{**quick, "queue": True})
    way.input(lambda chosen: gr.Group(visible=chosen == BLEND), way, second, **quick)
    asking.connect(library, model)
    page.chooses(strip, made, [stage, status])
    values = [
        model,
        *asking.inputs,
        way,
        painter,
        inputs.upload,
        inputs.example,
        other,
        strength,
        levels,
        guidance,
        seed,
    ]
    outputs = [stage, status, made]
    page.starts(start, stop, explained(run), values, outputs, seed=(seed, is_new), strip=strip, also=asking.prompt)
    _answer_programs(page, library)


def _first_class(entry: DemoModel) -> dict[str, Any]:
    """Return what the menus hold at first: any class of a hierarchy, which fits every picture, or else the first one."""
    return {"path": (0,) if entry.hierarchy is None else ()}


def _numbers(count: int) -> list[tuple[str, int]]:
    return [(f"{number + 1}", number) for number in range(count)]


def _updates(entry: DemoModel, request: EditRequest, steps: Iterator[Progress]) -> Iterator[tuple[Any, ...]]:
    """Yield the stage, the status and in the end the entry for the strip."""
    import gradio as gr

    for now in thinned(steps, lambda now: bool(now.views)):
        if now.views:
            made = _entry(entry, request, now.views)
            yield made["stage"], "Done.", made
        else:
            yield gr.skip(), f"Step {now.step} of {now.steps}." if now.steps else f"Step {now.step}.", None


def _answer_programs(page: Page, library: Library) -> None:
    """Offer the same to programs: a file of the picture that was made, or of each blend."""
    import gradio as gr

    # The parameters are named in the interface for programs.
    def answer(
        title: str,
        upload: bytes | None,
        example: float,
        mask: bytes | None,
        other: bytes | None,
        way: str,
        label: float,
        strength: float,
        keep_levels: float,
        guidance_scale: float,
        seed: float,
        prompt: str,
        negative_prompt: str,
    ) -> Iterator[tuple[Any, ...]]:
        entry, most = library.get(title), page.settings.max_pixels
        numbers = int(label), float(strength), int(keep_levels), float(guidance_scale), to_seed(seed)
        request = EditRequest(way, *numbers, prompt, negative_prompt)
        image = choose_image(entry, upload, int(example), max_pixels=most)
        size = image.shape[-1]
        white = None if mask is None else open_upload(mask, size=size, max_pixels=most)[0, 0].numpy() > 0
        fine = None if other is None else open_upload(other, size=size, max_pixels=most)
        steps = edit(entry, request, image, mask=white, other=fine, seconds=page.settings.max_seconds)
        with picture_files() as png:
            for now in steps:
                if now.views:
                    made = [view.pictures[-1] for view in now.views]
                    named = zip(made, now.views, strict=True)
                    files = [
                        (png(one), f"{view.name}, {view.size}") for one, view in named if isinstance(one, Image.Image)
                    ]
                    yield files[-1][0], files

    titles = library.image_editors()
    values = [
        *hidden_inputs(titles),
        gr.File(type="binary", visible=False),
        gr.File(type="binary", visible=False),
        gr.Dropdown([*WAYS], value=PAINT, visible=False),
        gr.Number(0, precision=0, visible=False),
        gr.Slider(0, 1, value=1, visible=False),
        gr.Number(1, precision=0, visible=False),
        gr.Slider(*GUIDANCE, value=1.5, visible=False),
        gr.Number(0, precision=0, visible=False),
        gr.Textbox("", visible=False),
        gr.Textbox("", visible=False),
    ]
    files = [gr.Image(visible=False, format="png"), gr.Gallery(visible=False, format="png")]
    page.answers(explained(answer), values, files, api_name="edit")
