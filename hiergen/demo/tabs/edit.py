"""Tab "Edit": what is painted over is made anew, fine levels are drawn again, or those of another picture are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.asking import add_asking, menu_path
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
from hiergen.demo.requests import GUIDANCE, check_asked, read_query, to_seed
from hiergen.demo.steps import thinned
from hiergen.demo.tabs.editing import (
    BLEND,
    PAINT,
    WAYS,
    EditRequest,
    Progress,
    edit,
    edited,
    make_ready,
    num_levels,
    ways,
)


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
            example=int(example),
            other=int(fine),
        )
        image = choose_image(entry, upload, int(example), max_pixels=limits.max_pixels)
        second_image = choose_image(entry, None, int(fine), max_pixels=limits.max_pixels)
        steps = edit(entry, request, image, mask=mask, other=second_image, seconds=limits.max_seconds)
        yield from _updates(entry, request, steps, is_whole=upload is None and mask is None)

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

    def again(asked: dict[str, str]) -> tuple[Any, ...]:
        title, request = asked.get("model", ""), read_query(EditRequest, asked)
        entry, is_blend = library.get(title), request.way == BLEND
        count = num_levels(entry)
        if not is_blend:
            check_asked(entry, request)
        examples, *_ = change(title)
        chosen = {**dataclasses.asdict(request), "path": menu_path(entry, request.label)}
        return (
            title,
            examples,
            gr.Radio(choices=ways(entry), value=request.way, visible=count > 0),
            gr.Slider(value=request.strength, visible=entry.model.starts_from_images),
            gr.Slider(maximum=max(count, 1), value=min(request.keep_levels, count), visible=count > 0),
            request.guidance_scale,
            *asking.show(entry, chosen),
            request.example,
            request.other,
            gr.Group(visible=is_blend),
            request.seed,
            False,
        )

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    shown = [model, inputs.upload, inputs.example]
    changed = [inputs.examples, way, strength, levels, guidance, *asking.outputs]
    model.input(change, model, changed, **quick)
    page.links["edit"] = again, [model, *changed, inputs.example, other, second, seed, is_new]
    # A link changes the example, and by it what is painted on: set by the page's opening itself, the painter would never send its picture.
    for trigger in (model.input, inputs.upload.upload, picked(inputs).success, inputs.example.change):
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


def _updates(
    entry: DemoModel, request: EditRequest, steps: Iterator[Progress], *, is_whole: bool
) -> Iterator[tuple[Any, ...]]:
    """Yield the stage, the status and in the end the entry for the strip."""
    import gradio as gr

    for now in thinned(steps, lambda now: bool(now.views)):
        if now.views:
            made = edited(entry, request, now.views, is_whole=is_whole)
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
