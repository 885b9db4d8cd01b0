"""What the tab "Edit" makes: what is painted over anew, fine levels drawn again, or those of another picture; and its results."""

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
from hiergen.demo.asking import menu_path, title_of, told
from hiergen.demo.inputs import examples_of
from hiergen.demo.library import DemoModel
from hiergen.demo.requests import GUIDANCE, SEED, check_asked, check_ranges
from hiergen.demo.stage import View, address, draw_stage, result
from hiergen.demo.steps import stream_steps
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
        example: Number of the example that is changed, where none is uploaded.
        other: Number of the example whose fine levels a blend takes.
    """

    way: str = PAINT
    label: int = 0
    strength: float = 1.0
    keep_levels: int = 1
    guidance_scale: float = 1.5
    seed: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    example: int = 0
    other: int = 1

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
        made.append(edited(entry, request, last.views))
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


def edited(entry: DemoModel, request: EditRequest, views: Sequence[View], *, is_whole: bool = False) -> dict[str, Any]:
    """Return the entry of the strip of results; its small picture is what was made.

    Args:
        entry: The model.
        request: What was asked for.
        views: What came of it.
        is_whole: Whether the request says everything, as nothing was uploaded and nothing painted: the result then has an address.
    """
    name = "blend" if request.way == BLEND else title_of(entry, request)
    made = [View((view.pictures[-1],), view.name, view.size, view.alt[-1]) for view in views]
    chosen = {**dataclasses.asdict(request), "path": menu_path(entry, request.label)}
    found = result(made, title=name, line="", chosen=chosen)
    return {**found, "stage": draw_stage(views, link=address(("edit", entry.title), chosen) if is_whole else "")}
