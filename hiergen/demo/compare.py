"""Tab "Compare": two models on the same picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.inputs import add_model, add_picture, choose_image, connect, examples_of, follow_model
from hiergen.demo.library import Library
from hiergen.demo.page import Page, picture_files
from hiergen.demo.reconstruct import Reconstruction, reconstruct
from hiergen.figures import INK, PALETTE


def comparison_table(results: Mapping[str, Reconstruction]) -> str:
    """Return the numbers of several reconstructions of one picture as a Markdown table."""
    lines = ["| model | read | tokens | size | PSNR (dB) |", "|---|---|---|---|---|"]
    for title, result in results.items():
        for step in result.steps:
            unit = result.unit if step.count > 1 else result.unit.removesuffix("s")
            lines.append(f"| {title} | {step.count} {unit} | {step.tokens} | {step.size} | {step.psnr_db:.2f} |")
    return "\n".join(lines)


def draw_comparison(results: Mapping[str, Reconstruction]) -> Image.Image:
    """Return curves of PSNR over the number of tokens read, one per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.8), layout="constrained")
    axis = figure.subplots()
    for color, (title, result) in zip(PALETTE, results.items(), strict=False):
        tokens, ratios = [s.tokens for s in result.steps], [s.psnr_db for s in result.steps]
        axis.plot(tokens, ratios, marker="o", color=color, label=title, linewidth=1.8)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tokens the decoder reads", fontsize=9, color=INK)
    axis.set_ylabel("PSNR (dB)", fontsize=9, color=INK)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, facecolor="white", format="png")
    return Image.open(buffer).convert("RGB")


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_tokenizers()

    def run(title: str, upload: bytes | None, example: float, other: str) -> Iterator[tuple[Any, ...]]:
        results = {}
        for name in (title, other):
            tokenizer = library.get(name).tokenizer
            size = int(tokenizer.config["image_size"])
            # Both see the picture of the first.
            image = choose_image(
                library.get(title), upload, int(example), max_pixels=page.settings.max_pixels, size=size
            )
            results[name] = reconstruct(tokenizer, image)
        with picture_files() as png:
            rows = [[(png(step.picture), step.caption) for step in results[name].steps] for name in (title, other)]
            chart = png(draw_comparison(results))
            yield png(results[title].source), *rows, chart, comparison_table(results)

    images, label = examples_of(library.get(titles[0]))
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = add_model(titles, name="compare-model")
            inputs = add_picture(to_pictures(images), name="compare", label=label, example=min(3, len(images) - 1))
        with gr.Column(scale=2, min_width=300):
            other = gr.Dropdown(list(titles), value=titles[1], label="Against", elem_id="compare-other")
            first = page.row("Model", name="compare-first")
            second = page.row("Against", name="compare-second")
            chart = gr.Image(show_label=False, interactive=False, format="png", buttons=["download"])
    table = gr.Markdown(elem_id="compare-table")
    outputs = [inputs.source, first, second, chart, table]
    follow_model(library, model, inputs)
    connect(page, run, model, inputs, outputs, api_name="compare", more=[other], busy=first)
