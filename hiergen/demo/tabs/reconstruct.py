"""Tab "Reconstruct": a picture or a clip from more and more levels of its tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.data.images.windows import Windows
from hiergen.demo.clips import SUFFIXES, Film, embedded_clips
from hiergen.demo.inputs import (
    add_model,
    add_picture,
    choose_clip,
    choose_image,
    connect,
    examples_of,
    follow_model,
    hidden_inputs,
    shown_examples,
)
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.pictures import difference, draw_tokens
from hiergen.demo.stage import View, draw_row, draw_stage
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import Prefix, list_prefixes, rebuild_prefixes
from hiergen.telling import counted
from hiergen.tokenizers.base import Tokenizer

#: What is shown of a picture, or of a clip.
Shown = Image.Image | Film
#: A picture is called unlike the training data where its PSNR is so far below that of the worst example, in dB.
UNLIKE = 3.0


@dataclasses.dataclass(frozen=True)
class Step:
    """A picture or clip from the first levels, scales or components of its tokens.

    Attributes:
        prefix: What is read, with its size.
        psnr_db: PSNR against the input, in dB.
        picture: The reconstruction.
        added: What this step added to the one before, mid grey for nothing; the first step's is the reconstruction.
        since: Number of levels, scales or components of the step before; 0 of the first.
    """

    prefix: Prefix
    psnr_db: float
    picture: Shown
    added: Shown
    since: int = 0

    @property
    def name(self) -> str:
        """What is read, in words: "2 levels"."""
        return counted(self.prefix.count, self.prefix.unit.removesuffix("s"))

    @property
    def caption(self) -> str:
        return f"{self.prefix}, {self.psnr_db:.1f} dB"

    @property
    def news(self) -> str:
        """What was added: "+ level 2", or "+ components 5 to 8"."""
        unit = self.prefix.unit.removesuffix("s")
        is_one = self.prefix.count == self.since + 1
        return f"+ {unit} {self.prefix.count}" if is_one else f"+ {unit}s {self.since + 1} to {self.prefix.count}"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture or clip, taken apart.

    Attributes:
        unit: "levels"; "scales" where a tokenizer of one level derives them in its decoder; "components" where it counts these.
        source: The picture or clip as the model saw it.
        steps: Coarse to fine; the last has all tokens.
        codes: The tokens of each level as a picture, with a caption; none where the picture was taken apart in windows.
    """

    unit: str
    source: Shown
    steps: tuple[Step, ...]
    codes: tuple[tuple[Image.Image, str], ...]


def reconstruct(tokenizer: Tokenizer, image: Tensor, *, windows: Windows | None = None) -> Reconstruction:
    """Return one image `(1, 3, h, w)`, or clip `(1, 3, t, h, w)`, in [-1, 1] from every prefix of its tokens that can be decoded.

    Args:
        tokenizer: The tokenizer.
        image: The image or clip, of the tokenizer's size, or an image of any where there are windows.
        windows: What the image is taken apart in; the tokens of all windows are counted, and those of none are drawn.
    """
    found = rebuild_prefixes(tokenizer, image, windows=windows)
    count = 1 if windows is None else windows.count(*image.shape[-2:])
    steps: list[Step] = []
    for index, (of_one, rebuilt) in enumerate(zip(list_prefixes(tokenizer), found.images, strict=True)):
        prefix = of_one.times(count)
        added = difference(rebuilt, found.images[index - 1]) if index else rebuilt
        since = steps[-1].prefix.count if steps else 0
        steps.append(Step(prefix, float(_psnr(rebuilt, image)), _shown(rebuilt), _shown(added), since))
    levels = () if windows is not None else zip(found.pyramid.levels, found.pyramid.specs, strict=True)
    codes = tuple(
        (draw_tokens(level[0], spec), f"level {number}: {counted(spec.num_tokens, 'token')}")
        for number, (level, spec) in enumerate(levels, start=1)
    )
    return Reconstruction(found.unit, _shown(image), tuple(steps), codes)


def _shown(images: Tensor) -> Shown:
    return to_pictures(images)[0] if images.ndim == 4 else Film.of(images[0])


def _psnr(rebuilt: Tensor, images: Tensor) -> Tensor:
    """Return the PSNR of each image; of a clip over all of its frames."""
    return psnr(rebuilt.flatten(2, -2), images.flatten(2, -2))


def drawn(picture: Shown) -> Image.Image | bytes:
    """Return what is shown of a picture or clip as a page holds it."""
    return picture.encoded() if isinstance(picture, Film) else picture


def describe(result: Reconstruction) -> str:
    """Return the numbers of a reconstruction as a Markdown table."""
    head = f"| {result.unit} | size | PSNR (dB) |\n|---|---|---|\n"
    return head + "\n".join(f"| {step.prefix.count} | {step.prefix} | {step.psnr_db:.2f} |" for step in result.steps)


def draw_reconstruction(result: Reconstruction, *, line: str = "") -> str:
    """Return the stage of a reconstruction: the picture beside what the levels that are chosen make of it.

    Both clips are one animated picture: only so do they play in step.
    """
    views = []
    both: tuple[Image.Image | bytes, ...]
    alt: tuple[str, ...]
    small: bytes | None
    for step in result.steps:
        if isinstance(result.source, Film) and isinstance(step.picture, Film):
            both = (result.source.beside(step.picture).encoded(),)
            alt = (f"The clip as the model sees it, and the same from {step.caption}",)
            small, kind = step.picture.encoded(), "clip"
        else:
            both, small, kind = (drawn(result.source), drawn(step.picture)), None, "picture"
            alt = ("The picture as the model sees it", f"The same from {step.caption}")
        name, size = step.name, step.caption
        if result.unit == "components":
            # Many steps, and a long word.
            name, size = f"{step.prefix.count} of {result.steps[-1].prefix.count}", f"components: {size}"
        views.append(View(both, name, size, alt, (f"the {kind}", f"from {step.name}"), small))
    return draw_stage(views, line=line)


def draw_details(result: Reconstruction) -> str:
    """Return rows of pictures: what each level added, and the tokens."""
    added = [(drawn(step.added), step.news) for step in result.steps]
    kind = "equal colors: alike vectors" if "number" in str(result.steps[-1].prefix) else "equal colors: equal ids"
    what = "more components" if result.unit == "components" else f"each {result.unit.removesuffix('s')}"
    rows = draw_row(f"What {what} added (grey: nothing)", added)
    if not result.codes:
        return rows
    return rows + draw_row(f"The tokens, a square each ({kind})", result.codes, is_natural=True)


@functools.lru_cache(maxsize=16)
def usual_psnr(entry: DemoModel) -> float:
    """Return the least PSNR that a model reaches on its examples, in dB."""
    if entry.clip_size is None:
        images, windows = examples_of(entry)[0], entry.windows
    else:
        images, windows = embedded_clips(entry.notes.clips, *entry.clip_size), None
    return float(_psnr(rebuild_prefixes(entry.tokenizer, images, windows=windows).images[-1], images).min())


def warn_of_unlike(entry: DemoModel, result: Reconstruction) -> str:
    """Return a sentence where a picture comes out much worse than the model's own examples; else nothing, as of clips of unknown data."""
    is_clip = isinstance(result.source, Film)
    if is_clip and not entry.notes.clips:
        return ""
    reached, usual = result.steps[-1].psnr_db, usual_psnr(entry)
    if reached >= usual - UNLIKE:
        return ""
    return (
        f"This {'clip' if is_clip else 'picture'} is unlike what the model knows: {reached:.1f} dB, where its own examples reach {usual:.1f} dB or more. "
        f"{entry.about.partition('. ')[0].rstrip('.')}."
    )


def reconstructors(library: Library) -> list[str]:
    """Return the titles of the models that the tab shows: those that encode pictures, then those that encode clips."""
    return [*library.image_tokenizers(), *library.clip_tokenizers()]


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = reconstructors(library)
    most = page.settings.max_pixels

    def look(title: str, upload: bytes | None, example: float) -> tuple[DemoModel, Reconstruction, str]:
        entry = library.get(title)
        if entry.clip_size is not None:
            clip, told = choose_clip(entry, upload, int(example), max_pixels=most)
            return entry, reconstruct(entry.tokenizer, clip), told
        image = choose_image(entry, upload, int(example), max_pixels=most)
        return entry, reconstruct(entry.tokenizer, image, windows=entry.windows), ""

    def show(title: str, upload: bytes | None, example: float) -> tuple[str, str, str, str]:
        entry, result, told = look(title, upload, example)
        line = told if upload is None else f"{told} {warn_of_unlike(entry, result)}".strip()
        return draw_reconstruction(result, line=line), draw_details(result), describe(result), entry.about

    def answer(title: str, upload: bytes | None, example: float) -> Iterator[tuple[Any, ...]]:
        _, result, told = look(title, upload, example)
        with picture_files() as write:
            steps = [(write(step.picture), step.caption) for step in result.steps]
            added = [(write(step.added), step.news) for step in result.steps]
            codes = [(write(picture), caption) for picture, caption in result.codes]
            numbers = f"{describe(result)}\n\n{told}".strip()
            yield write(result.source), steps, added, codes, numbers

    first = library.get(titles[0])
    examples, label = shown_examples(first)
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage(
                (), "A picture or clip from more and more levels of its tokens.", name="reconstruct-stage"
            )
            with gr.Accordion(
                "What each level added, the tokens, and the numbers", open=False, elem_id="reconstruct-more"
            ):
                details = gr.HTML(elem_id="reconstruct-details", apply_default_css=False)
                numbers = gr.Markdown(elem_id="reconstruct-numbers")
        with gr.Column(scale=2, min_width=280):
            model = add_model(titles, name="reconstruct-model")
            about = gr.Markdown(first.about, elem_classes="about")
            inputs = add_picture(
                examples,
                name="reconstruct",
                label=label,
                example=min(3, len(examples) - 1),
                of_clips=first.clip_size is not None,
            )
    followed = follow_model(library, model, inputs)
    connect(page, show, model, inputs, [stage, details, numbers, about], followed=followed, busy=stage)
    files: list[Any] = [
        gr.Image(visible=False, format="png"),
        *(gr.Gallery(visible=False, format="png") for _ in range(3)),
    ]
    values = hidden_inputs(titles, also=SUFFIXES)
    page.answers(explained(answer), values, [*files, gr.Markdown(visible=False)], api_name="reconstruct")
