"""Tab "Reconstruct": a picture from more and more levels of its tokens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.data.images.windows import Windows
from hiergen.demo.inputs import (
    add_model,
    add_picture,
    choose_image,
    connect,
    examples_of,
    follow_model,
    hidden_inputs,
)
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.pictures import difference, draw_tokens
from hiergen.demo.stage import View, draw_row, draw_stage
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import Prefix, list_prefixes, rebuild_prefixes
from hiergen.telling import counted
from hiergen.tokenizers.base import Tokenizer

#: A picture is called unlike the training data where its PSNR is so far below that of the worst example, in dB.
UNLIKE = 3.0


@dataclasses.dataclass(frozen=True)
class Step:
    """A picture from the first levels, or scales, of its tokens.

    Attributes:
        prefix: What is read, with its size.
        psnr_db: PSNR against the input, in dB.
        picture: The reconstruction.
        added: What the last level or scale added, mid grey for nothing; the first step's is the reconstruction.
    """

    prefix: Prefix
    psnr_db: float
    picture: Image.Image
    added: Image.Image

    @property
    def name(self) -> str:
        """What is read, in words: "2 levels"."""
        return counted(self.prefix.count, self.prefix.unit.removesuffix("s"))

    @property
    def caption(self) -> str:
        return f"{self.prefix}, {self.psnr_db:.1f} dB"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture, taken apart.

    Attributes:
        unit: "levels", or "scales" where a tokenizer of one level derives them in its decoder.
        source: The picture as the model saw it.
        steps: Coarse to fine; the last has all tokens.
        codes: The tokens of each level as a picture, with a caption; none where the picture was taken apart in windows.
    """

    unit: str
    source: Image.Image
    steps: tuple[Step, ...]
    codes: tuple[tuple[Image.Image, str], ...]


def reconstruct(tokenizer: Tokenizer, image: Tensor, *, windows: Windows | None = None) -> Reconstruction:
    """Return one image `(1, 3, h, w)` in [-1, 1] from every prefix of its tokens that can be decoded.

    Args:
        tokenizer: The tokenizer.
        image: The image, of the tokenizer's size, or of any where there are windows.
        windows: What the image is taken apart in; the tokens of all windows are counted, and those of none are drawn.
    """
    found = rebuild_prefixes(tokenizer, image, windows=windows)
    count = 1 if windows is None else windows.count(*image.shape[-2:])
    steps = []
    for index, (of_one, rebuilt) in enumerate(zip(list_prefixes(tokenizer), found.images, strict=True)):
        prefix = of_one.times(count)
        added = difference(rebuilt, found.images[index - 1]) if index else rebuilt
        steps.append(Step(prefix, float(psnr(rebuilt, image)), to_pictures(rebuilt)[0], to_pictures(added)[0]))
    drawn = () if windows is not None else zip(found.pyramid.levels, found.pyramid.specs, strict=True)
    codes = tuple(
        (draw_tokens(level[0], spec), f"level {number}: {counted(spec.num_tokens, 'token')}")
        for number, (level, spec) in enumerate(drawn, start=1)
    )
    return Reconstruction(found.unit, to_pictures(image)[0], tuple(steps), codes)


def describe(result: Reconstruction) -> str:
    """Return the numbers of a reconstruction as a Markdown table."""
    head = f"| {result.unit} | size | PSNR (dB) |\n|---|---|---|\n"
    return head + "\n".join(f"| {step.prefix.count} | {step.prefix} | {step.psnr_db:.2f} |" for step in result.steps)


def draw_reconstruction(result: Reconstruction, *, line: str = "") -> str:
    """Return the stage of a reconstruction: the picture beside what the levels that are chosen make of it."""
    views = [
        View(
            (result.source, step.picture),
            step.name,
            step.caption,
            ("The picture as the model sees it", f"The same from {step.caption}"),
            ("the picture", f"from {step.name}"),
        )
        for step in result.steps
    ]
    return draw_stage(views, line=line)


def draw_details(result: Reconstruction) -> str:
    """Return rows of pictures: what each level added, and the tokens."""
    unit = result.unit.removesuffix("s")
    added = [(step.added, f"+ {unit} {step.prefix.count}") for step in result.steps]
    kind = "equal colors: alike vectors" if "number" in str(result.steps[-1].prefix) else "equal colors: equal ids"
    rows = draw_row(f"What each {unit} added (grey: nothing)", added)
    if not result.codes:
        return rows
    return rows + draw_row(f"The tokens, a square each ({kind})", result.codes, is_natural=True)


@functools.lru_cache(maxsize=16)
def usual_psnr(entry: DemoModel) -> float:
    """Return the least PSNR that a model reaches on its examples, in dB."""
    images, _ = examples_of(entry)
    return float(psnr(rebuild_prefixes(entry.tokenizer, images, windows=entry.windows).images[-1], images).min())


def warn_of_unlike(entry: DemoModel, result: Reconstruction) -> str:
    """Return a sentence where a picture comes out much worse than the model's own examples; else nothing."""
    reached, usual = result.steps[-1].psnr_db, usual_psnr(entry)
    if reached >= usual - UNLIKE:
        return ""
    return (
        f"This picture is unlike what the model knows: {reached:.1f} dB, where its own examples reach {usual:.1f} dB or more. "
        f"{entry.about.partition('. ')[0].rstrip('.')}."
    )


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_tokenizers()

    def look(title: str, upload: bytes | None, example: float) -> tuple[DemoModel, Reconstruction]:
        entry = library.get(title)
        image = choose_image(entry, upload, int(example), max_pixels=page.settings.max_pixels)
        return entry, reconstruct(entry.tokenizer, image, windows=entry.windows)

    def show(title: str, upload: bytes | None, example: float) -> tuple[str, str, str, str]:
        entry, result = look(title, upload, example)
        line = "" if upload is None else warn_of_unlike(entry, result)
        return draw_reconstruction(result, line=line), draw_details(result), describe(result), entry.about

    def answer(title: str, upload: bytes | None, example: float) -> Iterator[tuple[Any, ...]]:
        _, result = look(title, upload, example)
        with picture_files() as png:
            steps = [(png(step.picture), step.caption) for step in result.steps]
            added = [(png(step.added), f"+ {result.unit} {step.prefix.count}") for step in result.steps]
            codes = [(png(picture), caption) for picture, caption in result.codes]
            yield png(result.source), steps, added, codes, describe(result)

    images, label = examples_of(library.get(titles[0]))
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage((), "A picture from more and more levels of its tokens.", name="reconstruct-stage")
            with gr.Accordion(
                "What each level added, the tokens, and the numbers", open=False, elem_id="reconstruct-more"
            ):
                details = gr.HTML(elem_id="reconstruct-details", apply_default_css=False)
                numbers = gr.Markdown(elem_id="reconstruct-numbers")
        with gr.Column(scale=2, min_width=280):
            model = add_model(titles, name="reconstruct-model")
            about = gr.Markdown(library.get(titles[0]).about, elem_classes="about")
            inputs = add_picture(to_pictures(images), name="reconstruct", label=label, example=min(3, len(images) - 1))
    follow_model(library, model, inputs)
    connect(page, show, model, inputs, [stage, details, numbers, about], busy=stage)
    files: list[Any] = [
        gr.Image(visible=False, format="png"),
        *(gr.Gallery(visible=False, format="png") for _ in range(3)),
    ]
    page.answers(explained(answer), hidden_inputs(titles), [*files, gr.Markdown(visible=False)], api_name="reconstruct")
