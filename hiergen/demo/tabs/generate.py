"""Tab "Generate": pictures of a class or of words, level by level as they are made, or out of noise."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.asking import add_asking, invitation, menu_path, title_of, told
from hiergen.demo.inputs import add_buttons, add_guidance, add_seed
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.pictures import montage
from hiergen.demo.requests import GUIDANCE, SEED, check_asked, check_ranges, read_query, to_seed
from hiergen.demo.stage import View, draw_empty, draw_stage, result
from hiergen.demo.steps import StoppedError, stream_steps, thinned
from hiergen.generators.flow.model import FlowTransformer
from hiergen.pipelines.prefixes import list_prefixes
from hiergen.pyramid import TokenPyramid
from hiergen.telling import counted

#: Most pictures of a request, and most candidates of each.
MAX_IMAGES, MAX_CANDIDATES = 8, 4
#: Number of finished results of a model, and of looks at a picture that comes out of noise, the last one included.
NUM_READY, NUM_LOOKS = 8, 6
#: Number of finished results that are made at once.
READY_BATCH = 4


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0; with a class hierarchy any node. A model of texts does not read it.
        count: Number of pictures.
        guidance_scale: Guidance scale; 1 is no guidance.
        temperature: Temperature of the draws; generators that have none do not read it.
        seed: Seed of all random draws.
        prompt: What a model of texts is told.
        negative_prompt: What its guidance moves away from; "" is no text.
        best_of: Number of candidates of each picture, of which the best is kept.
    """

    label: int = 0
    count: int = 1
    guidance_scale: float = 1.5
    temperature: float = 1.0
    seed: int = 0
    prompt: str = ""
    negative_prompt: str = ""
    best_of: int = 1

    def __post_init__(self) -> None:
        numbers = {"count": (1, MAX_IMAGES), "best_of": (1, MAX_CANDIDATES)}
        check_ranges(self, **numbers, guidance_scale=GUIDANCE, temperature=(0, 4), seed=SEED)


@dataclasses.dataclass(frozen=True)
class Look:
    """The pictures at some point of a generation.

    Attributes:
        pictures: All pictures.
        name: What the point is called, e.g. "2 levels", "step 4".
        size: What is known by then, in words, e.g. "4 tokens, 36 bits".
    """

    pictures: tuple[Image.Image, ...]
    name: str
    size: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a generation is.

    Attributes:
        step: Number of steps done.
        steps: Number of steps of the whole; 0 where it is not known before.
        looks: What was to be seen so far: the complete levels, or with a flow what the noise is becoming.
        is_done: Whether this is the result.
    """

    step: int
    steps: int
    looks: tuple[Look, ...]
    is_done: bool


def has_setting(entry: DemoModel, name: str) -> bool:
    """Return whether the generator of a model knows a setting."""
    return name in {field.name for field in dataclasses.fields(entry.generator.settings_class)}


def generate(entry: DemoModel, request: GenerateRequest, *, seconds: float) -> Iterator[Progress]:
    """Yield the progress of a generation; the last one is the result.

    Raises:
        ValueError: If the class is unknown, there are no words, or a setting is out of range.
        StoppedError: If it took longer than `seconds`.
    """
    check_asked(entry, request)
    yield from _generate(entry, [request], seconds=seconds)


def _generate(entry: DemoModel, requests: Sequence[GenerateRequest], *, seconds: float) -> Iterator[Progress]:
    """Yield the progress of one batch for requests that differ in class or prompt and seed alone; each draws as if it were alone."""
    first, device = requests[0], entry.model.device
    chosen = {**entry.notes.sampling, "guidance_scale": first.guidance_scale, "best_of": first.best_of}
    if has_setting(entry, "temperature"):
        chosen["temperature"] = first.temperature
    chosen |= told(entry, first)[1] | {f"num_images_per_{'prompt' if entry.takes_words else 'label'}": first.count}
    draws = [torch.Generator(device).manual_seed(request.seed) for request in requests]

    def run(report: Callable[[Progress], None]) -> None:
        watcher = _Watcher(entry, report)
        made = entry.model(
            [told(entry, request)[0] for request in requests],
            generator=draws if len(draws) > 1 else draws[0],
            callback_on_step_end=watcher,
            callback_on_step_end_tensor_inputs=("pyramid", "latents", "images"),
            output_type="pt",
            **chosen,
        )
        watcher.finish(made)

    yield from stream_steps(run, seconds=seconds)


class _Watcher:
    """Looks at a generation after each step."""

    def __init__(self, entry: DemoModel, report: Callable[[Progress], None]) -> None:
        self._entry, self._report = entry, report
        self._looks: list[Look] = []
        self._before: tuple[float, torch.Tensor] | None = None

    def __call__(self, pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._entry.generator, FlowTransformer):
            self._look_through_noise(step, float(timestep), shown["latents"])
        elif shown["pyramid"] is not None and len(shown["pyramid"]) > len(self._looks):
            self._looks.append(_look(shown["images"], *_level_size(self._entry, shown["pyramid"])))
        self._report(Progress(step + 1, pipe.num_timesteps, tuple(self._looks), is_done=False))
        return shown

    def _look_through_noise(self, step: int, now: float, state: torch.Tensor) -> None:
        """Decode where the flow is heading: on from here in the direction of the last step, to the end of time."""
        steps = self._entry.model.num_timesteps
        before, self._before = self._before, (now, state.clone())
        wanted = {round((number + 0.5) * steps / NUM_LOOKS) for number in range(NUM_LOOKS - 1)}
        if before is None or step not in wanted or now >= 1:
            return
        ahead = state + (1 - now) * (state - before[1]) / (now - before[0])
        images = self._entry.model._decode(self._entry.generator.tokens_of(ahead))
        self._looks.append(_look(images, f"step {step + 1}", f"of {steps}"))

    def finish(self, made: Any) -> None:
        name, size = _level_size(self._entry, made.pyramid)
        looks = self._looks[: len(made.pyramid) - 1]
        if isinstance(self._entry.generator, FlowTransformer):
            steps = self._entry.model.num_timesteps
            looks, name, size = self._looks, f"step {steps}", f"of {steps}"
        if made.kept is not None:
            looks = [_kept(look, made.kept.tolist()) for look in looks]
        self._report(Progress(0, 0, (*looks, _look(made.images, name, size)), is_done=True))


def _kept(look: Look, kept: Sequence[int]) -> Look:
    """Return a look at the candidates that were kept, by their numbers among those of each picture."""
    best_of = len(look.pictures) // len(kept)
    chosen = tuple(look.pictures[picture * best_of + number] for picture, number in enumerate(kept))
    return dataclasses.replace(look, pictures=chosen)


def _look(images: torch.Tensor, name: str, size: str) -> Look:
    return Look(tuple(to_pictures(images)), name, size)


def _level_size(entry: DemoModel, pyramid: TokenPyramid) -> tuple[str, str]:
    """Return how many levels there are, and their size as it is printed everywhere."""
    prefixes = list_prefixes(entry.tokenizer)
    found = [prefix for prefix in prefixes if prefix.unit == "levels" and prefix.count == len(pyramid)]
    return counted(len(pyramid), "level"), str(found[0] if found else prefixes[-1])


def draw_views(entry: DemoModel, request: GenerateRequest, looks: Sequence[Look]) -> list[View]:
    """Return what the stage shows of a generation."""
    name = title_of(entry, request)
    return [
        View(look.pictures, look.name, look.size, f"Generated: {name}, {look.name}, seed {request.seed}")
        for look in looks
    ]


def make_ready(entry: DemoModel, *, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Return finished results of a model, of different classes or prompts, as many as are done within some seconds."""
    made: list[dict[str, Any]] = []
    started = time.monotonic()
    # Those that the notes name, or classes spread over all of them. Samples are the first of their seeds either way.
    spread = [number * entry.num_classes // NUM_READY for number in range(min(NUM_READY, entry.num_classes))]
    asked: list[dict[str, Any]] = [{"label": label} for label in entry.notes.shown or spread]
    if entry.takes_words:
        asked = [{"prompt": prompt} for prompt in entry.notes.prompts[:NUM_READY]]
    usual = entry.usual_guidance(1.5)
    requests = [GenerateRequest(**one, guidance_scale=usual, seed=seed) for seed, one in enumerate(asked)]
    for batch in (requests[:READY_BATCH], requests[READY_BATCH:]):
        if batch and time.monotonic() - started < seconds:
            try:
                *_, last = _generate(entry, batch, seconds=limit)
            except StoppedError:
                # A slow machine opens the page without them.
                break
            made += [_result(entry, request, _part(last, number)) for number, request in enumerate(batch)]
    return made


def _part(progress: Progress, number: int) -> Progress:
    looks = tuple(dataclasses.replace(look, pictures=(look.pictures[number],)) for look in progress.looks)
    return dataclasses.replace(progress, looks=looks)


def _result(entry: DemoModel, request: GenerateRequest, last: Progress) -> dict[str, Any]:
    name = title_of(entry, request)
    size = list_prefixes(entry.tokenizer)[-1]
    way = ", all at once, out of noise" if isinstance(entry.generator, FlowTransformer) else ""
    best = f", the best of {request.best_of}" if request.best_of > 1 else ""
    line = f"{name}, seed {request.seed}{best}: {size}{' per picture' if request.count > 1 else ''}{way}."
    chosen = {**dataclasses.asdict(request), "path": menu_path(entry, request.label)}
    place = "generate", entry.title
    return result(draw_views(entry, request, last.looks), title=name, line=line, chosen=chosen, place=place)


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.image_generators()
    first = library.get(titles[0])
    settings = page.settings
    ready = {
        title: make_ready(library.get(title), seconds=settings.ready_seconds, limit=settings.max_seconds)
        for title in titles
    }
    opened = ready[titles[0]][0]["chosen"] if ready[titles[0]] else {"path": menu_path(first, 0)}
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage(ready[titles[0]], invitation(first), name="generate-stage")
            status = page.status("generate-status")
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="generate-model")
            asking = add_asking(library, titles, name="generate", chosen=opened)
            start, stop = add_buttons("generate")
            with gr.Accordion("Settings", open=False, elem_id="generate-settings"):
                count = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Pictures")
                guidance = add_guidance(first.usual_guidance(1.5))
                temperature = gr.Slider(
                    0, 2, value=1, step=0.05, label="Temperature", interactive=has_setting(first, "temperature")
                )
                best_of = gr.Slider(
                    *(1, MAX_CANDIDATES),
                    value=1,
                    step=1,
                    label="Candidates for each, of which the best is kept",
                    visible=first.model.compares_candidates,
                    elem_id="generate-best-of",
                )
                seed, is_new = add_seed("generate")
            strip, made = page.strip(ready[titles[0]], name="generate-strip")
            about = gr.Markdown(first.about, elem_classes="about")

    def run(title: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        entry, (*asked, amount, scale, warmth, candidates, number) = library.get(title), values
        request = GenerateRequest(
            **asking.read(entry, asked),
            count=int(amount),
            guidance_scale=float(scale),
            temperature=float(warmth),
            best_of=int(candidates),
            seed=to_seed(number),
        )
        yield from _updates(entry, request, generate(entry, request, seconds=settings.max_seconds))

    def change(title: str) -> tuple[Any, ...]:
        entry = library.get(title)
        return (
            gr.Slider(value=entry.usual_guidance(1.5)),
            gr.Slider(interactive=has_setting(entry, "temperature")),
            gr.Slider(value=1, visible=entry.model.compares_candidates),
            entry.about,
            ready[title][0]["stage"] if ready[title] else draw_empty(invitation(entry)),
            {"items": ready[title], "at": 0},
            *asking.show(entry, ready[title][0]["chosen"] if ready[title] else {}),
        )

    def again(asked: dict[str, str]) -> tuple[Any, ...]:
        title, request = asked.get("model", ""), read_query(GenerateRequest, asked)
        entry = library.get(title)
        check_asked(entry, request)
        chosen = {**dataclasses.asdict(request), "path": menu_path(entry, request.label)}
        warmth = gr.Slider(value=request.temperature, interactive=has_setting(entry, "temperature"))
        strip = {"items": ready[title], "at": 0}
        return title, False, warmth, entry.about, strip, *restore(title, chosen)

    def restore(title: str, chosen: dict[str, Any]) -> tuple[Any, ...]:
        return (
            chosen["seed"],
            chosen["guidance_scale"],
            chosen["count"],
            gr.Slider(value=chosen["best_of"], visible=library.get(title).model.compares_candidates),
            *asking.show(library.get(title), chosen),
        )

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    changed = [guidance, temperature, best_of, about, stage, strip, *asking.outputs]
    model.input(change, model, changed, **quick)
    asking.connect(library, model)
    shown = [seed, guidance, count, best_of, *asking.outputs]
    page.chooses(strip, made, [stage, status]).then(restore, [model, made], shown, **quick)
    page.links["generate"] = again, [model, is_new, temperature, about, strip, *shown]
    inputs = [model, *asking.inputs, count, guidance, temperature, best_of, seed]
    outputs = [stage, status, made]
    page.starts(start, stop, explained(run), inputs, outputs, seed=(seed, is_new), strip=strip, also=asking.prompt)
    _answer_programs(page, library)


def _updates(entry: DemoModel, request: GenerateRequest, steps: Iterator[Progress]) -> Iterator[tuple[Any, ...]]:
    """Yield the stage, the status and in the end the entry for the strip; steps that show nothing new change the status alone."""
    import gradio as gr

    sent = 0
    for now in thinned(steps, lambda now: (len(now.looks), now.is_done)):
        if now.is_done:
            entry_made = _result(entry, request, now)
            yield entry_made["stage"], "Done.", entry_made
        elif len(now.looks) > sent:
            sent = len(now.looks)
            yield draw_stage(draw_views(entry, request, now.looks)), _status(now), None
        else:
            yield gr.skip(), _status(now), None


def _status(now: Progress) -> str:
    return f"Step {now.step} of {now.steps}." if now.steps else f"Step {now.step}."


def _answer_programs(page: Page, library: Library) -> None:
    """Offer the same to programs: files of the pictures of each level, a sheet of all pictures."""
    import gradio as gr

    # The parameters are named in the interface for programs.
    def answer(
        title: str,
        label: float,
        count: float,
        guidance_scale: float,
        temperature: float,
        seed: float,
        prompt: str,
        negative_prompt: str,
        best_of: float,
    ) -> Iterator[tuple[Any, ...]]:
        numbers = int(label), int(count), float(guidance_scale), float(temperature), to_seed(seed)
        request = GenerateRequest(*numbers, prompt, negative_prompt, int(best_of))
        with picture_files() as png:
            for now in generate(library.get(title), request, seconds=page.settings.max_seconds):
                if now.is_done:
                    levels = [(png(montage(list(look.pictures))), f"{look.name}: {look.size}") for look in now.looks]
                    yield levels[-1][0], levels, f"Done: {list_prefixes(library.get(title).tokenizer)[-1]}."

    titles = library.image_generators()
    values = [
        gr.Dropdown(titles, value=titles[0], visible=False),
        gr.Number(0, precision=0, visible=False),
        gr.Slider(1, MAX_IMAGES, value=1, step=1, visible=False),
        gr.Slider(*GUIDANCE, value=1.5, visible=False),
        gr.Slider(0, 4, value=1, visible=False),
        gr.Number(0, precision=0, visible=False),
        gr.Textbox("", visible=False),
        gr.Textbox("", visible=False),
        gr.Slider(1, MAX_CANDIDATES, value=1, step=1, visible=False),
    ]
    files = [gr.Image(visible=False, format="png"), gr.Gallery(visible=False, format="png"), gr.Markdown(visible=False)]
    page.answers(explained(answer), values, files, api_name="generate")
