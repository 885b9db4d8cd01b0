"""The page: one tab for each thing that the loaded models can do, and the server behind it."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiergen.demo.clips import MAX_FRAMES
from hiergen.demo.inputs import FRAME_SHARE
from hiergen.demo.library import Library, load_library
from hiergen.demo.page import Page
from hiergen.demo.settings import DemoSettings, read_accounts
from hiergen.demo.stage import SCRIPT
from hiergen.demo.tabs import compare, edit, generate, reconstruct, shapes, text, video
from hiergen.environment import choose_device, require
from hiergen.pipelines.card import papers
from hiergen.telling import counted

if TYPE_CHECKING:
    import gradio as gr

#: Seconds between two searches for old files, and age in seconds at which a file is old: uploads and results do not stay.
KEEP_FILES = (600, 1800)
#: Number of visitors whose state is kept.
MAX_SESSIONS = 200
#: Parameter of `mallopt`, from glibc's malloc.h.
_M_ARENA_MAX = -8

#: What the page begins with: what levels are, in a sentence and a drawing.
HEADER = """
<header class="hg-head"><div><h1>hiergen</h1>
<p>A picture, a shape or a clip becomes <b>levels of tokens</b>: the first few say roughly what it is, and each further level adds what is still missing.</p></div>
{}</header>
"""
#: Number of tokens of each level in the drawing.
DRAWN_LEVELS = (1, 2, 4, 8)
STYLE = Path(__file__).with_name("style.css")


def build_app(settings: DemoSettings, library: Library) -> gr.Blocks:
    """Return the page, with a tab for each thing that some model of the library can do.

    Raises:
        ImportError: If gradio is not installed.
    """
    gr = require("gradio", "demo", "the demo")

    tabs: list[tuple[str, bool, Callable[[Page, Library], None]]] = [
        ("Generate", len(library.image_generators()) > 0, generate.add_tab),
        ("Edit", len(library.image_editors()) > 0, edit.add_tab),
        ("Reconstruct", len(reconstruct.reconstructors(library)) > 0, reconstruct.add_tab),
        ("Compare", len(library.image_tokenizers()) > 1, compare.add_tab),
        ("Shapes", len(library.shape_generators()) > 0, shapes.add_tab),
        ("Video", len(library.video_generators()) > 0, video.add_tab),
        ("Text", len(library.text_generators()) > 0, text.add_tab),
    ]
    with gr.Blocks(title="hiergen", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=True) as blocks:
        gr.HTML(HEADER.format(_drawing()), apply_default_css=False)
        with gr.Tabs() as shown:
            page = Page(blocks, settings, shown)
            for title, is_shown, add_tab in tabs:
                if is_shown:
                    with gr.Tab(title, id=title.lower()):
                        add_tab(page, library)
        page.follow_links()
        with gr.Accordion("Models, papers and licence", open=False, elem_id="models"):
            _add_models(library)
        gr.Markdown(
            f"One request is computed at a time, up to {settings.max_queue} wait; each may take {settings.max_seconds:g} s. "
            f"Uploads: at most {settings.max_upload_mb} MiB and {settings.max_pixels / 1e6:g} megapixels, deleted within an hour. "
            f"Of a clip the first {MAX_FRAMES} frames are read, of at most {settings.max_pixels / FRAME_SHARE / 1e6:g} megapixels each. "
            "hiergen is free software under the Apache License 2.0.",
            elem_classes="about",
        )
    blocks.queue(max_size=settings.max_queue, default_concurrency_limit=settings.concurrency, api_open=False)
    return blocks


def _limit_arenas() -> None:
    """Let threads share two heaps of the C library, where it is glibc's.

    By default each thread fills one of its own with pieces of passing requests: the server's memory then grows by some 50 MiB per minute
    under load, though nothing is kept.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def launch(settings: DemoSettings, *, library: Library | None = None, waits: bool = True) -> tuple[Any, str]:
    """Load the models, serve the page, and return it and its address; wait until the server ends where it `waits`.

    Raises:
        ValueError: If a model or the file of passwords cannot be used.
        ImportError: If gradio is not installed.
        OSError: If the port is taken.
    """
    _limit_arenas()
    accounts = None if settings.auth_file is None else read_accounts(settings.auth_file)
    library = library or load_library(
        settings.models, packaged=settings.packaged, device=str(choose_device(settings.device))
    )
    blocks = build_app(settings, library)
    _warm_up(library)
    _, url, _ = blocks.launch(
        server_name=settings.host,
        server_port=settings.port or None,
        share=settings.share,
        auth=accounts,
        root_path=settings.root_path or None,
        inbrowser=settings.open_browser,
        max_file_size=settings.max_upload_mb * 2**20,
        max_threads=8,
        state_session_capacity=MAX_SESSIONS,
        strict_cors=True,
        allowed_paths=[],
        show_error=False,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        quiet=True,
        css=STYLE.read_text(encoding="utf-8"),
        head=SCRIPT,
        theme=_theme(),
        prevent_thread_lock=True,
    )
    if waits:
        print(f"hiergen demo at {url} (stop with Ctrl+C)", flush=True)
        blocks.block_thread()
    return blocks, url


def _theme() -> Any:
    import gradio as gr

    # Fonts of the reader's system: gradio's own would be fetched from elsewhere.
    fonts = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])
    # Base's own grey is too pale on white for small print: 2.6 to 1, where 4.5 can be read.
    return theme.set(body_text_color_subdued="*neutral_500")


def _drawing() -> str:
    """Return a drawing of levels: what is known from one level of squares, the tokens, from two, and so on."""
    steps = []
    for number in range(1, len(DRAWN_LEVELS) + 1):
        middle, count = 45 + 90 * (number - 1), sum(DRAWN_LEVELS[:number]) + 3
        # A round thing, drawn by more and more corners.
        corners = [2 * math.pi * (k + 0.5) / count for k in range(count)]
        outline = " ".join(f"{middle + 19 * math.sin(t):.1f},{21 - 19 * math.cos(t):.1f}" for t in corners)
        squares = "".join(
            f'<rect class="token{"" if row < number - 1 else " is-new"}" x="{middle + 8 * (k - tokens / 2) + 0.5}" y="{50 + 8 * row}" width="7" height="7" rx="1.5"/>'
            for row, tokens in enumerate(DRAWN_LEVELS[:number])
            for k in range(tokens)
        )
        name = f'<text x="{middle}" y="98" text-anchor="middle">{counted(number, "level")}</text>'
        steps.append(f'<polygon points="{outline}"/>{squares}{name}')
    about = "From one level of tokens a round thing is a lozenge; from four, of 1, 2, 4 and 8 tokens, it is round."
    return f'<svg viewBox="0 0 360 104" role="img" aria-label="{about}"><title>{about}</title>{"".join(steps)}</svg>'


def _add_models(library: Library) -> None:
    """Add what each model is, where its methods come from, and its card."""
    import gradio as gr

    for title, entry in library.models.items():
        parts = [part for part in (entry.tokenizer, entry.generator) if part is not None]
        count = sum(parameter.numel() for part in parts for parameter in part.parameters())
        links = dict.fromkeys(paper for part in parts for paper in papers(part))
        found = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" for paper in links)
        after = f" After {found}." if found else ""
        gr.Markdown(f"**{title}**, {count / 1e6:.1f} million parameters. {entry.about}{after}")
        if entry.card:
            with gr.Accordion(f"Card: {title}", open=False):
                gr.Markdown(entry.card)


def _warm_up(library: Library) -> None:
    """Run each tokenizer of pictures once, so that the first visitor does not wait for imports; the generators have run already."""
    for title in library.image_tokenizers():
        tokenizer = library.get(title).tokenizer
        size = int(tokenizer.config["image_size"])
        reconstruct.reconstruct(tokenizer, torch.zeros(1, 3, size, size, device=tokenizer.device))
