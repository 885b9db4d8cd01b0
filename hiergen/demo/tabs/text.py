"""Tab "Text": type, and see the chunks that a model reads; let it go on, byte by byte, and see where the next chunks begin."""

from __future__ import annotations

import bisect
import dataclasses
import html
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from hiergen.demo.inputs import add_buttons, add_seed
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import ROLL, Page, explained
from hiergen.demo.requests import SEED, check_ranges, to_seed
from hiergen.demo.steps import stream_steps, thinned
from hiergen.generators.sequences.block.model import BlockTransformer
from hiergen.generators.sequences.byte_word.model import ByteWordTransformer
from hiergen.generators.sequences.byte_word.words import word_starts
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.settings import TextSettings
from hiergen.generators.sequences.texts import BEGIN
from hiergen.seeding import SampleRng
from hiergen.telling import counted

#: Most bytes of the text that is gone on with, and of what is made.
MAX_PROMPT, MAX_NEW = 2_000, 1_000
#: What the page opens with.
PROMPT = "The with statement is used to wrap the execution of a block"


@dataclasses.dataclass(frozen=True)
class TextRequest:
    """What is asked for.

    Attributes:
        prompt: The text so far.
        max_new_bytes: Number of bytes that are made at most.
        temperature: Temperature of the draws.
        stop: Characters that end the text; empty for none.
        seed: Seed of all random draws.
    """

    prompt: str = ""
    max_new_bytes: int = 240
    temperature: float = 0.7
    stop: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, max_new_bytes=(1, MAX_NEW), temperature=(0, 4), seed=SEED)
        if (size := len(self.prompt.encode())) > MAX_PROMPT:
            raise ValueError(f"prompt has {size:,} bytes, expected at most {MAX_PROMPT:,}")


@dataclasses.dataclass(frozen=True)
class Written:
    """A text as far as it is written.

    Attributes:
        prompt: What was there before.
        made: What the model made.
        is_done: Whether this is the result.
    """

    prompt: bytes
    made: bytes
    is_done: bool


def write(entry: DemoModel, request: TextRequest, *, seconds: float) -> Iterator[Written]:
    """Yield a text as it grows; the last one is the result.

    Raises:
        StoppedError: If it took longer than `seconds`.
    """
    settings = TextSettings(
        max_new_bytes=request.max_new_bytes,
        temperature=request.temperature,
        stop=(request.stop,) if request.stop else (),
    )

    def run(report: Callable[[Written], None]) -> None:
        prompt, made = request.prompt.encode(), b""
        for (piece,) in entry.model.stream_text(prompt, settings, rng=SampleRng.of([0], request.seed, "text")):
            made += piece
            report(Written(prompt, made, is_done=False))
        report(Written(prompt, made, is_done=True))

    yield from stream_steps(run, seconds=seconds)


def chunk_starts(entry: DemoModel, text: bytes) -> dict[str, list[int]]:
    """Return at which bytes of a text the chunks of each of a model's coarse levels begin, by the name of the level; none of a flat model."""
    model = entry.model
    if not text:
        return {}
    if isinstance(model, BlockTransformer):
        # A text's begin is an id of its first block.
        return {"block": [0, *range(model.block_length - 1, len(text), model.block_length)]}
    if isinstance(model, ByteWordTransformer):
        return {"word": word_starts(text, max_bytes=model.config["max_word_bytes"])}
    if isinstance(model, HNet) and model.targets:
        ids = torch.tensor([[BEGIN, *text]], device=model.device)
        found = [marks[0, 1:].nonzero()[:, 0].tolist() for marks in model.find_boundaries(ids)]
        return {"chunk" if not stage else f"chunk of stage {stage}": marks for stage, marks in enumerate(found)}
    return {}


def draw_text(text: Written, starts: dict[str, list[int]]) -> str:
    """Return HTML of a text once for each coarse level, each chunk on a ground of its own; what the model made stands out."""
    whole = text.prompt + text.made
    parts = []
    for name, places in (starts or {"": []}).items():
        title = f"{counted(len(places), name)}, {len(whole) / len(places):.1f} bytes each" if places else "No chunks"
        chunks = _cut(whole, sorted({0, *places, len(text.prompt)}))
        spans = "".join(
            f'<span class="hg-chunk{" is-odd" if bisect.bisect(places, start) % 2 else ""}'
            f'{" is-new" if start >= len(text.prompt) else ""}">{html.escape(shown)}</span>'
            for start, shown in chunks
        )
        parts.append(f'<h3 class="hg-title">{html.escape(title)}</h3><div class="hg-text">{spans}</div>')
    return "".join(parts)


def _cut(text: bytes, starts: Sequence[int]) -> list[tuple[int, str]]:
    """Return the start and the characters of each piece; a character is in the piece of its first byte, and a wrong byte is a mark."""
    pieces, place = [""] * len(starts), 0
    for character in text.decode("utf-8", "surrogateescape"):
        is_shown = character.isprintable() or character == "\n"
        pieces[bisect.bisect(starts, place) - 1] += character if is_shown else "\N{REPLACEMENT CHARACTER}"
        place += len(character.encode("utf-8", "surrogateescape"))
    return list(zip(starts, pieces, strict=True))


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.text_generators()
    first = library.get(titles[0])
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = gr.HTML(_look(first, PROMPT), elem_id="text-stage", apply_default_css=False)
            status = page.status("text-status")
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="text-model")
            prompt = gr.Textbox(PROMPT, label="Your text", lines=4, max_lines=10, elem_id="text-prompt")
            start, stop = add_buttons("text")
            with gr.Accordion("Settings", open=False, elem_id="text-settings"):
                count = gr.Slider(1, MAX_NEW, value=240, step=1, label="Bytes")
                temperature = gr.Slider(0, 2, value=0.7, step=0.05, label="Temperature")
                end = gr.Textbox("", label="Ends before", placeholder="never", elem_id="text-end")
                seed, is_new = add_seed("text")
            about = gr.Markdown(first.about, elem_classes="about")

    def look(title: str, text: str) -> tuple[str, str, str]:
        return _look(library.get(title), text), library.get(title).about, ""

    def run(title: str, text: str, amount: float, warmth: float, end: str, number: float) -> Iterator[tuple[str, str]]:
        entry = library.get(title)
        request = TextRequest(text, int(amount), float(warmth), end, to_seed(number))
        for now in thinned(write(entry, request, seconds=page.settings.max_seconds), lambda now: now.is_done):
            said = f"{len(now.made)} bytes."
            yield draw_text(now, chunk_starts(entry, now.prompt + now.made)), f"Done: {said}" if now.is_done else said

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    for part in (model, prompt):
        part.input(explained(look), [model, prompt], [stage, about, status], trigger_mode="always_last", **quick)
    rolled = start.click(None, [seed, is_new], seed, js=f"(seed, isNew) => isNew ? {ROLL} : seed", **quick)
    event = {**page.event, "trigger_mode": "once", "show_progress_on": status, "api_visibility": "private"}
    started = rolled.then(explained(run), [model, prompt, count, temperature, end, seed], [stage, status], **event)
    stop.click(None, cancels=[started], **quick).then(lambda: "Stopped.", None, status, **quick)
    _answer_programs(page, library)


def _look(entry: DemoModel, text: str) -> str:
    """Return the HTML of a text that somebody types.

    Raises:
        ValueError: If it is too long.
    """
    prompt = TextRequest(text).prompt.encode()
    return draw_text(Written(prompt, b"", is_done=True), chunk_starts(entry, prompt))


def _answer_programs(page: Page, library: Library) -> None:
    """Offer the same to programs: the new text as it grows, and the places where chunks begin in the whole."""
    import gradio as gr

    # The parameters are named in the interface for programs.
    def answer(
        title: str, prompt: str, max_new_bytes: float, temperature: float, stop: str, seed: float
    ) -> Iterator[tuple[str, dict[str, list[int]]]]:
        entry = library.get(title)
        request = TextRequest(prompt, int(max_new_bytes), float(temperature), stop, to_seed(seed))
        for now in thinned(write(entry, request, seconds=page.settings.max_seconds), lambda now: now.is_done):
            yield now.made.decode(errors="replace"), chunk_starts(entry, now.prompt + now.made)

    titles = library.text_generators()
    values = [
        gr.Dropdown(titles, value=titles[0], visible=False),
        gr.Textbox(visible=False),
        gr.Slider(1, MAX_NEW, value=240, step=1, visible=False),
        gr.Slider(0, 4, value=0.7, visible=False),
        gr.Textbox("", visible=False),
        gr.Number(0, precision=0, visible=False),
    ]
    page.answers(explained(answer), values, [gr.Textbox(visible=False), gr.JSON(visible=False)], api_name="text")
