"""Tab "Compare": two models on the same picture, at equal sizes of the code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.inputs import (
    add_model,
    add_picture,
    choose_image,
    connect,
    examples_of,
    follow_model,
    hidden_inputs,
)
from hiergen.demo.library import Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.stage import draw_picture, draw_row
from hiergen.demo.tabs.reconstruct import Reconstruction, drawn, reconstruct
from hiergen.evaluation.images.rate_distortion import draw_rates, rate_row


def comparison_table(results: Mapping[str, Reconstruction]) -> str:
    """Return the numbers of several reconstructions of one picture as a Markdown table."""
    lines = ["| model | read | size | PSNR (dB) |", "|---|---|---|---|"]
    for title, result in results.items():
        lines += [f"| {title} | {step.name} | {step.prefix} | {step.psnr_db:.2f} |" for step in result.steps]
    return "\n".join(lines)


def draw_comparison(results: Mapping[str, Reconstruction]) -> Image.Image:
    """Return curves of PSNR over the bits of the code, one per model: tokens of different kinds compare in nothing else."""
    curves = {
        title: [rate_row(step.prefix, {"psnr": step.psnr_db}, {}) for step in result.steps]
        for title, result in results.items()
    }
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        path = Path(folder) / "rates.png"
        draw_rates(path, curves)
        return Image.open(path).convert("RGB")


def first_pair(library: Library) -> tuple[str, str]:
    """Return the titles of two tokenizers to begin with: the first two with the same examples, which are then of the data of both."""
    titles = library.image_tokenizers()
    for index, title in enumerate(titles):
        for other in titles[index + 1 :]:
            if library.get(title).examples == library.get(other).examples:
                return title, other
    return titles[0], titles[1]


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    pair = first_pair(library)
    titles = [*pair, *(title for title in library.image_tokenizers() if title not in pair)]

    def look(title: str, upload: bytes | None, example: float, other: str) -> dict[str, Reconstruction]:
        results = {}
        for name in (title, other):
            tokenizer = library.get(name).tokenizer
            size = int(tokenizer.config["image_size"])
            # Both see the picture of the first.
            image = choose_image(
                library.get(title), upload, int(example), max_pixels=page.settings.max_pixels, size=size
            )
            results[name] = reconstruct(tokenizer, image)
        return results

    def show(title: str, upload: bytes | None, example: float, other: str) -> tuple[str, str]:
        results = look(title, upload, example, other)
        rows = draw_row("The picture", [(drawn(results[title].source), "as the models see it")])
        for name, result in results.items():
            rows += draw_row(name, [(drawn(step.picture), step.caption) for step in result.steps])
        chart = draw_picture(draw_comparison(results), f"PSNR over the bits of the code: {' and '.join(results)}")
        return f'{rows}<div class="hg-chart">{chart}</div>', comparison_table(results)

    def answer(title: str, upload: bytes | None, example: float, other: str) -> Iterator[tuple[Any, ...]]:
        results = look(title, upload, example, other)
        with picture_files() as png:
            rows = [[(png(step.picture), step.caption) for step in results[name].steps] for name in (title, other)]
            yield png(results[title].source), *rows, png(draw_comparison(results)), comparison_table(results)

    images, label = examples_of(library.get(titles[0]))
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            shown = gr.HTML(elem_id="compare-shown", apply_default_css=False)
            with gr.Accordion("The numbers", open=False, elem_id="compare-more"):
                table = gr.Markdown(elem_id="compare-table")
        with gr.Column(scale=2, min_width=280):
            model = add_model(titles, name="compare-model")
            other = gr.Dropdown(list(titles), value=titles[1], label="Against", elem_id="compare-other")
            inputs = add_picture(to_pictures(images), name="compare", label=label, example=min(3, len(images) - 1))
    followed = follow_model(library, model, inputs)
    connect(page, show, model, inputs, [shown, table], more=[other], followed=followed, busy=shown)
    values = [*hidden_inputs(titles), gr.Dropdown(list(titles), value=titles[1], visible=False)]
    pictures: list[Any] = [
        gr.Image(visible=False, format="png"),
        *(gr.Gallery(visible=False, format="png") for _ in range(2)),
    ]
    files = [*pictures, gr.Image(visible=False, format="png"), gr.Markdown(visible=False)]
    page.answers(explained(answer), values, files, api_name="compare")
