"""The page: one tab for each thing that the loaded models can do, and the server behind it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hiergen.demo import compare, generate, reconstruct, shapes, video
from hiergen.demo.library import Library, load_library
from hiergen.demo.page import Page
from hiergen.demo.settings import DemoSettings, read_accounts
from hiergen.environment import choose_device, require

if TYPE_CHECKING:
    import gradio as gr

#: Seconds between two searches for old files, and age in seconds at which a file is old: uploads and results do not stay.
KEEP_FILES = (600, 1800)
#: Number of visitors whose state is kept.
MAX_SESSIONS = 200
#: Parameter of `mallopt`, from glibc's malloc.h.
_M_ARENA_MAX = -8

INTRODUCTION = """
# hiergen

Coarse first, then the residual detail: a picture, a shape or a clip as **levels of tokens**. Few tokens say roughly what it is, each further level adds detail.
"""

#: Small pictures are shown large and with hard pixels; rows of pictures wrap to the width there is, each with its whole caption;
#: labels stand above pictures, not on them. Errors come as sentences, and stopping is none, which gradio marks as one now and then.
CSS = """
.pixels img { image-rendering: pixelated; }
.pixels .image-container { padding-top: 28px; box-sizing: border-box; }
.pixels .image-frame, .pixels .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.strip .grid-wrap, .examples .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; padding-top: 32px !important; }
.strip .thumbnail-item { height: auto; aspect-ratio: auto; display: block; }
.strip .thumbnail-item img { width: 100%; aspect-ratio: 1; }
.strip .caption-label { position: static; max-width: none; white-space: normal; border: 0; padding: 4px; text-align: center; }
.examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; grid-template-rows: none !important; grid-auto-rows: min-content; gap: 4px; }
.columns-4 .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
.strip.columns-5 .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; }
.strip.columns-6 .grid-container { grid-template-columns: repeat(6, minmax(0, 1fr)) !important; }
.examples .thumbnail-item { width: 100%; height: auto; aspect-ratio: 1; }
.examples .gallery-item { height: auto; }
.status { min-height: 3.5em; }
.status .error, .status .clear-status { display: none; }
.secondary-wrap input { text-overflow: ellipsis; padding-right: 28px; }
.prose { overflow-x: auto; }
.prose th, .prose td { word-break: normal; overflow-wrap: normal; border-color: var(--border-color-primary) !important; }
@media (max-width: 640px) {
  .strip.columns-5 .grid-container, .strip.columns-6 .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .prose th, .prose td { padding: 4px 6px !important; font-size: 13px; }
  .tab-container button { padding: 0 7px !important; font-size: 13px !important; }
}
.about { opacity: 0.8; font-size: 0.9em; }
"""


def build_app(settings: DemoSettings, library: Library) -> gr.Blocks:
    """Return the page, with a tab for each thing that some model of the library can do.

    Raises:
        ImportError: If gradio is not installed.
    """
    gr = require("gradio", "demo", "the demo")

    tabs: list[tuple[str, bool, Callable[[Page, Library], None]]] = [
        ("Reconstruct", len(library.image_tokenizers()) > 0, reconstruct.add_tab),
        ("Generate", len(library.image_generators()) > 0, generate.add_tab),
        ("Shapes", len(library.shape_generators()) > 0, shapes.add_tab),
        ("Video", len(library.video_generators()) > 0, video.add_tab),
        ("Compare", len(library.image_tokenizers()) > 1, compare.add_tab),
    ]
    with gr.Blocks(title="hiergen", analytics_enabled=False, delete_cache=KEEP_FILES, fill_width=False) as blocks:
        gr.Markdown(INTRODUCTION)
        page = Page(blocks, settings)
        for title, is_shown, add_tab in tabs:
            if is_shown:
                with gr.Tab(title, id=title.lower()):
                    add_tab(page, library)
        gr.Markdown(_models(library))
        gr.Markdown(
            f"One request is computed at a time, up to {settings.max_queue} wait; each may take {settings.max_seconds:g} s. "
            f"Uploads: at most {settings.max_upload_mb} MiB and {settings.max_pixels / 1e6:g} megapixels, deleted within an hour.",
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
        css=CSS,
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
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"])


def _models(library: Library) -> str:
    lines = ["## Models", ""]
    for title, entry in library.models.items():
        parts = [entry.tokenizer, entry.generator]
        count = sum(parameter.numel() for part in parts if part is not None for parameter in part.parameters())
        lines.append(f"- **{title}**, {count / 1e6:.1f} million parameters. {entry.about}")
    return "\n".join(lines)


def _warm_up(library: Library) -> None:
    """Run each kind of model once, briefly, so that the first visitor does not wait for imports."""
    for title in library.image_tokenizers():
        tokenizer = library.get(title).tokenizer
        size = int(tokenizer.config["image_size"])
        reconstruct.reconstruct(tokenizer, torch.zeros(1, 3, size, size, device=tokenizer.device))
    for title in library.shape_generators():
        shapes.warm_up(library.get(title))
    for title in library.video_generators():
        video.warm_up(library.get(title))
