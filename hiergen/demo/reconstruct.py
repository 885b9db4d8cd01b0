"""Tab "Reconstruct": a picture from more and more levels of its tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.inputs import add_model, add_picture, choose_image, connect, examples_of, follow_model
from hiergen.demo.library import Library
from hiergen.demo.page import Page, picture_files
from hiergen.demo.pictures import difference, draw_tokens
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.pyramid import LevelSpec
from hiergen.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class Step:
    """A picture from the first levels, or scales, of its tokens.

    Attributes:
        count: Number of levels, or scales.
        tokens: Number of tokens that they hold.
        size: Size of what is read, in words: bits of ids, or real numbers.
        psnr_db: PSNR against the input, in dB.
        picture: The reconstruction.
        added: What the last level or scale added, mid grey for nothing; the first step's is the reconstruction.
    """

    count: int
    tokens: int
    size: str
    psnr_db: float
    picture: Image.Image
    added: Image.Image

    @property
    def caption(self) -> str:
        return f"{self.tokens} token{'s' * (self.tokens > 1)}, {self.size}, {self.psnr_db:.1f} dB"


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture, taken apart.

    Attributes:
        unit: "levels", or "scales" where a tokenizer of one level derives them in its decoder.
        source: The picture as the model saw it.
        steps: Coarse to fine; the last has all tokens.
        codes: The tokens of each level as a picture, with a caption.
    """

    unit: str
    source: Image.Image
    steps: tuple[Step, ...]
    codes: tuple[tuple[Image.Image, str], ...]


def reconstruct(tokenizer: Tokenizer, image: Tensor) -> Reconstruction:
    """Return one image `(1, 3, h, w)` in [-1, 1] from every prefix of its tokens that can be decoded."""
    found = rebuild_prefixes(tokenizer, image)
    steps = []
    for index, (count, tokens, rebuilt) in enumerate(zip(found.counts, found.tokens, found.images, strict=True)):
        added = difference(rebuilt, found.images[index - 1]) if index else rebuilt
        # The scales of a decoder are all derived from the whole of the tokens.
        read = count if found.unit == "levels" else len(tokenizer.specs)
        steps.append(
            Step(
                count=count,
                tokens=tokens,
                size=information(tokenizer.specs[:read]),
                psnr_db=float(psnr(rebuilt, image)),
                picture=to_pictures(rebuilt)[0],
                added=to_pictures(added)[0],
            )
        )
    codes = tuple(
        (draw_tokens(level[0], spec), f"level {index}: {spec.num_tokens} token{'s' * (spec.num_tokens > 1)}")
        for index, (level, spec) in enumerate(zip(found.pyramid.levels, found.pyramid.specs, strict=True))
    )
    return Reconstruction(found.unit, to_pictures(image)[0], tuple(steps), codes)


def information(specs: Sequence[LevelSpec]) -> str:
    """Return how much levels of tokens hold: the bits of their ids, or how many real numbers they are."""
    if all(spec.is_discrete for spec in specs):
        return f"{sum(spec.num_tokens * math.log2(spec.vocab_size or 1) for spec in specs):.0f} bits"
    return f"{sum(spec.num_tokens * spec.dim for spec in specs)} numbers"


def describe(result: Reconstruction) -> str:
    """Return the numbers of a reconstruction as a Markdown table."""
    head = f"| {result.unit} | tokens | size | PSNR (dB) |\n|---|---|---|---|\n"
    return head + "\n".join(
        f"| {step.count} | {step.tokens} | {step.size} | {step.psnr_db:.2f} |" for step in result.steps
    )


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_tokenizers()

    def run(title: str, upload: bytes | None, example: float) -> Iterator[tuple[Any, ...]]:
        entry = library.get(title)
        image = choose_image(entry, upload, int(example), max_pixels=page.settings.max_pixels)
        result = reconstruct(entry.tokenizer, image)
        unit, last = result.unit.removesuffix("s"), len(result.steps)
        slider = gr.Slider(minimum=1, maximum=max(last, 2), value=last, interactive=last > 1)
        with picture_files() as png:
            steps = [(png(step.picture), step.caption) for step in result.steps]
            added = [(png(step.added), f"+ {unit} {step.count - 1}") for step in result.steps]
            codes = [(png(picture), caption) for picture, caption in result.codes]
            yield png(result.source), steps[-1][0], slider, steps, added, codes, describe(result)

    images, label = examples_of(library.get(titles[0]))
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = add_model(titles, name="reconstruct-model")
            inputs = add_picture(to_pictures(images), name="reconstruct", label=label, example=min(3, len(images) - 1))
        with gr.Column(scale=2, min_width=300):
            shown = page.picture("From these levels", name="reconstruct-shown")
            level = gr.Slider(1, 5, value=5, step=1, label="Levels read", elem_id="reconstruct-level")
            numbers = gr.Markdown(elem_id="reconstruct-numbers")
    steps = page.row("From more and more levels", name="reconstruct-steps", columns=6)
    added = page.row("What each of them added (grey: nothing)", name="reconstruct-added", columns=6)
    codes = page.row(
        "The tokens, one square each (equal colors: equal ids, or alike vectors)", name="reconstruct-codes", columns=6
    )
    # Moving the slider shows what the browser already has.
    level.input(
        fn=None, inputs=[level, steps], outputs=[shown], js="(k, items) => items?.[k - 1]?.image ?? null", queue=False
    )
    follow_model(library, model, inputs)
    connect(
        page,
        run,
        model,
        inputs,
        [inputs.source, shown, level, steps, added, codes, numbers],
        api_name="reconstruct",
        busy=shown,
    )
