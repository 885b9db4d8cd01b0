"""Tab "Video": clips of a class; folded away, dense beside pyramid sparse attention, the plan of what is read, and when that pays."""

from __future__ import annotations

import dataclasses
import functools
import html
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hiergen.benchmarks.psa import config_of_density, describe_default, describe_pay, measure_pay
from hiergen.data.videos.files import caption_videos, write_gif
from hiergen.demo.inputs import add_buttons, add_guidance, add_seed
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained
from hiergen.demo.requests import GUIDANCE, SEED, check_label, check_ranges, read_query, to_seed
from hiergen.demo.stage import SMOOTH, View, draw_empty, draw_picture, result
from hiergen.demo.steps import stream_steps, thinned
from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan, draw_plan
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import list_prefixes

#: Queries and keys of a block: small, as clips of the demo are.
BLOCKS = (32, 16)
#: Programs get small clips this many times as large: a viewer does not scale a GIF with hard pixels, as the page does.
ENLARGED = 6
#: Pixels that two clips side by side are drawn in, names above them.
SHEET = 640
#: Lengths at which dense and sparse attention are timed beside each other, besides that of the model's clips, and the blocks of long ones.
LENGTHS, LONG_BLOCKS = (1024, 4096), (128, 64)
#: Most finished clips of a model.
NUM_READY = 6
#: What an empty stage says.
EMPTY = "Choose a class and press Generate."
EXPERIMENT = """
Sparse attention reads what is near and important finely and the rest coarsely, from a pyramid of keys. Density is the share of all products that is left.
Both clips start from the same noise and play in step; below them stands what each took on this machine.

**When it pays.** The products that are left out grow with the square of the tokens. In short clips, planning and gathering take longer than what that saves.
So it takes clips of thousands of tokens, and a low density.
"""

#: The attention of a model is switched while it samples: one request at a time, however many the queue lets through.
_SWITCHED = threading.Lock()


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0.
        density: Share of the dense products that sparse attention computes; None makes no sparse clip.
        guidance_scale: Guidance scale; 1 is no guidance.
        seed: Seed of all random draws; both clips start from the same noise.
    """

    label: int = 0
    density: float | None = 0.45
    guidance_scale: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, guidance_scale=GUIDANCE, seed=SEED)
        if self.density is not None:
            check_ranges(self, density=(0.05, 0.9))


@dataclasses.dataclass(frozen=True)
class Clip:
    """A generated clip and what it took.

    Attributes:
        video: `(3, t, h, w)` in [-1, 1].
        density: Mean share of the dense products that was computed; 1 for dense attention.
        seconds: Elapsed seconds, decoding included.
        plan: Plan of the last step and the last layer; None for dense attention.
    """

    video: Tensor
    density: float
    seconds: float
    plan: PyramidPlan | None


def generate_clips(
    entry: DemoModel, request: VideoRequest, *, seconds: float
) -> Iterator[tuple[int, tuple[Clip, ...]]]:
    """Yield the number of steps done and the clips so far: the dense one, then the sparse one where it is asked for.

    Raises:
        ValueError: If the class is unknown or a setting out of range.
        StoppedError: If it took longer than `seconds`.
    """
    check_label(entry, request.label)
    attentions: list[PSAConfig | None] = [None]
    if request.density is not None:
        attentions.append(config_of_density(request.density, *BLOCKS, "pyramid"))
    clips: list[Clip] = []

    def run(report: Callable[[tuple[int, tuple[Clip, ...]]], None]) -> None:
        done = 0

        def step(*_: Any) -> None:
            nonlocal done
            done += 1
            report((done, tuple(clips)))

        for attention in attentions:
            clips.append(_draw(entry, request, attention, step))
            report((done, tuple(clips)))

    yield from stream_steps(run, seconds=seconds)


def _draw(entry: DemoModel, request: VideoRequest, attention: PSAConfig | None, step: Callable[..., None]) -> Clip:
    generator = entry.generator
    assert isinstance(generator, FlowTransformer)
    plans: list[PyramidPlan] = []
    densities: list[float] = []

    def note(plan: PyramidPlan) -> None:
        plans[:] = [plan]
        densities.append(float(plan.density))

    started = time.monotonic()
    with _SWITCHED:
        before = generator.config["attention"]
        generator.set_attention(attention, on_plan=note)
        try:
            made = entry.model(
                request.label,
                generator=torch.Generator(entry.model.device).manual_seed(request.seed),
                callback_on_step_end=step,
                output_type="pt",
                **{**entry.notes.sampling, "guidance_scale": request.guidance_scale},
            )
        finally:
            generator.set_attention(before)
    return Clip(
        video=made.frames[0].cpu(),
        density=sum(densities) / len(densities) if densities else 1.0,
        seconds=time.monotonic() - started,
        plan=plans[-1] if plans else None,
    )


def describe_clips(clips: tuple[Clip, ...]) -> str:
    """Return the numbers of the dense and the sparse clip as a Markdown table, and below it which was faster."""
    lines = ["| attention | products computed | seconds here | PSNR against dense (dB) |", "|---|---|---|---|"]
    for name, clip in zip(("dense", "pyramid sparse"), clips, strict=False):
        same = clip is clips[0]
        # Over the whole clip: a frame that is the same in both would make a mean over frames infinite.
        (error,) = psnr(*(c.video.flatten(1, 2)[None] for c in (clip, clips[0])))
        ratio = "" if same else f"{float(error):.1f}" if error.isfinite() else "equal"
        lines.append(f"| {name} | {clip.density:.0%} | {clip.seconds:.1f} | {ratio} |")
    if len(clips) == 2:
        lines += ["", describe_pay(clips[0].seconds, [clips[1].seconds])]
    return "\n".join(lines)


def describe_experiment(entry: DemoModel, density: float) -> str:
    """Return what sparse attention is, and whether it is expected to pay for clips of a model."""
    assert isinstance(entry.generator, FlowTransformer)
    num_tokens = len(entry.generator.position_table())
    return f"{EXPERIMENT.strip()} {describe_default(num_tokens, config_of_density(density, *BLOCKS, 'pyramid'))}"


@functools.lru_cache(maxsize=64)
def measure_lengths(num_tokens: int, density: float) -> str:
    """Return, as an HTML table, how long dense and sparse attention take on this machine by the number of tokens; measured once."""
    rows = []
    for length in (num_tokens, *(length for length in LENGTHS if length > num_tokens)):
        blocks = BLOCKS if length == num_tokens else LONG_BLOCKS
        dense, sparse = measure_pay(length, config_of_density(density, *blocks, "pyramid"))
        rows.append((f"{length:,}", f"{1e3 * dense:.1f}", f"{1e3 * sparse:.1f}", f"{sparse / dense:.2f}"))
    head = ("tokens", "dense (ms)", "sparse (ms)", "ratio")
    first = f"Attention alone, two heads of 64 channels, at density {density:g}. Sparse pays where the ratio is below 1. The first row is a clip of this model."
    return f'<p class="hg-line">{first}</p>{_table((head, *rows))}'


def draw_clips(clips: tuple[Clip, ...], *, enlarge: int = 1) -> bytes:
    """Return a clip as a GIF, or several side by side in one, each under its name and larger: they play in step."""
    if len(clips) > 1:
        scale = max(1, SHEET // (len(clips) * clips[0].video.shape[-1]))
        names = ["dense", *(f"sparse, {clip.density:.0%} of the products" for clip in clips[1:])]
        named = dict(zip(names, (clip.video for clip in clips), strict=True))
        video, enlarge = caption_videos(named, enlarge=scale, is_smooth=clips[0].video.shape[-1] >= SMOOTH), 1
    else:
        video = clips[0].video
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        path = Path(folder) / "clips.gif"
        write_gif(path, video, enlarge=enlarge)
        return path.read_bytes()


def _result(entry: DemoModel, request: VideoRequest, clips: tuple[Clip, ...]) -> dict[str, Any]:
    name = entry.class_name(request.label)
    line = f"{name}, seed {request.seed}" + (": dense attention, and pyramid sparse." if len(clips) > 1 else ".")
    view = View((draw_clips(clips),), "the clip", str(list_prefixes(entry.tokenizer)[-1]), f"Generated clip: {line}")
    chosen = {"label": request.label, "guidance_scale": request.guidance_scale, "seed": request.seed}
    return result((view,), title=name, line=line, chosen=chosen, place=("video", entry.title))


def make_ready(entry: DemoModel, *, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Return finished clips of a model, of different classes, as many as are done within some seconds."""
    made: list[dict[str, Any]] = []
    started = time.monotonic()
    for label in range(entry.num_classes):
        if time.monotonic() - started >= seconds or len(made) == NUM_READY:
            break
        request = VideoRequest(label, None, entry.usual_guidance(2.0), seed=label)
        *_, (_, clips) = generate_clips(entry, request, seconds=limit)
        made.append(_result(entry, request, clips))
    return made


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles, limits = library.video_generators(), page.settings
    first = library.get(titles[0])
    ready = {
        title: make_ready(library.get(title), seconds=limits.ready_seconds, limit=limits.max_seconds)
        for title in titles
    }
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage(ready[titles[0]], EMPTY, name="video-stage")
            status = page.status("video-status")
            numbers = gr.HTML(elem_id="video-numbers", apply_default_css=False)
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model", elem_id="video-model")
            label = gr.Dropdown(first.choices(), value=0, label="Class", elem_id="video-class")
            start, stop = add_buttons("video")
            with gr.Accordion("Settings", open=False, elem_id="video-settings"):
                guidance = add_guidance(first.usual_guidance(2.0))
                seed = add_seed("video")
            with gr.Accordion("Sparse attention beside dense", open=False, elem_id="video-attention"):
                compares = gr.Checkbox(
                    False, label="Make each clip with both, from the same noise", elem_id="video-compares"
                )
                density = gr.Slider(0.05, 0.9, value=0.45, step=0.05, label="Density")
                experiment = gr.Markdown(describe_experiment(first, 0.45), elem_classes="about")
                measure = gr.Button("Measure on this machine", size="sm", elem_id="video-measure")
                measured = gr.HTML(elem_id="video-measured", apply_default_css=False)
            strip, made = page.strip(ready[titles[0]], name="video-strip")
            about = gr.Markdown(first.about, elem_classes="about")

    def run(
        title: str, label: int, compares: bool, density: float, guidance_scale: float, seed: float | None
    ) -> Iterator[tuple[Any, ...]]:
        entry = library.get(title)
        request = VideoRequest(int(label), float(density) if compares else None, float(guidance_scale), to_seed(seed))
        for steps, clips in thinned(
            generate_clips(entry, request, seconds=limits.max_seconds), lambda now: len(now[1])
        ):
            if len(clips) == (2 if compares else 1):
                done = _result(entry, request, clips)
                yield done["stage"], _describe(clips), "Done.", done
            else:
                yield gr.skip(), "", f"Step {steps}.", None

    def measure_for(title: str, density: float) -> str:
        return measure_lengths(len(library.get(title).generator.position_table()), float(density))

    def change(title: str, density: float) -> tuple[Any, ...]:
        entry = library.get(title)
        return (
            gr.Dropdown(choices=entry.choices(), value=0),
            gr.Slider(value=entry.usual_guidance(2.0)),
            entry.about,
            describe_experiment(entry, density),
            ready[title][0]["stage"] if ready[title] else draw_empty(EMPTY),
            {"items": ready[title], "at": 0},
        )

    def again(asked: dict[str, str]) -> tuple[Any, ...]:
        request, title = read_query(VideoRequest, asked), asked.get("model", "")
        entry = library.get(title)
        check_label(entry, request.label)
        _, _, *others = change(title, 0.45)
        label = gr.Dropdown(choices=entry.choices(), value=request.label)
        return title, label, request.guidance_scale, *others, request.seed, False

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    changed = [label, guidance, about, experiment, stage, strip]
    model.input(change, [model, density], changed, **quick)
    page.links["video"] = again, [model, *changed, *seed]
    density.release(
        lambda title, density: describe_experiment(library.get(title), density), [model, density], experiment, **quick
    )
    event = {**page.event, "show_progress_on": measure, "api_visibility": "private"}
    measure.click(explained(measure_for), [model, density], measured, **event)
    page.chooses(strip, made, [stage, status]).then(
        lambda chosen: (chosen["label"], chosen["guidance_scale"], chosen["seed"], ""),
        made,
        [label, guidance, seed[0], numbers],
        **quick,
    )
    inputs = [model, label, compares, density, guidance, seed[0]]
    page.starts(start, stop, explained(run), inputs, [stage, numbers, status, made], seed=seed, strip=strip)
    _answer_programs(page, library)


def _describe(clips: tuple[Clip, ...]) -> str:
    """Return the HTML of the numbers of two clips and of the plan; nothing for one clip."""
    if len(clips) == 1:
        return ""
    head, _, *rows = [line for line in describe_clips(clips).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    pays = describe_clips(clips).splitlines()[-1]
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder, Image.open(_plan(clips, Path(folder))) as plan:
        alt = "How coarsely each block of queries reads each block of keys"
        return (
            f'{_table(cells)}<p class="hg-line">{html.escape(pays)}</p>'
            f'<div class="hg-chart hg-plan">{draw_picture(plan.convert("RGB"), alt)}</div><p class="hg-line">{alt}, in one head.</p>'
        )


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<table class="hg-table">{cells}</table>'


def _plan(clips: tuple[Clip, ...], folder: Path) -> Path:
    plan = clips[-1].plan
    assert plan is not None
    return draw_plan(plan, folder / "plan.png")


def _answer_programs(page: Page, library: Library) -> None:
    """Offer both clips, the plan and the numbers to programs."""
    import gradio as gr

    # The parameters are named in the interface for programs.
    def answer(
        title: str, label: float, density: float, guidance_scale: float, seed: float
    ) -> Iterator[tuple[Any, ...]]:
        request = VideoRequest(int(label), float(density), float(guidance_scale), to_seed(seed))
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as name:
            *_, (_, clips) = generate_clips(library.get(title), request, seconds=page.settings.max_seconds)
            files = []
            for kind, clip in zip(("dense", "sparse"), clips, strict=True):
                files.append(str(Path(name) / f"{kind}.gif"))
                Path(files[-1]).write_bytes(draw_clips((clip,), enlarge=max(1, ENLARGED * 32 // clip.video.shape[-1])))
            yield *files, str(_plan(clips, Path(name))), describe_clips(clips)

    titles = library.video_generators()
    values = [
        gr.Dropdown(titles, value=titles[0], visible=False),
        gr.Number(0, precision=0, visible=False),
        gr.Slider(0.05, 0.9, value=0.45, visible=False),
        gr.Slider(*GUIDANCE, value=2.0, visible=False),
        gr.Number(0, precision=0, visible=False),
    ]
    files: list[Any] = [gr.File(visible=False), gr.File(visible=False), gr.Image(visible=False, format="png")]
    page.answers(explained(answer), values, [*files, gr.Markdown(visible=False)], api_name="video")
