"""Tab "Video": clips of a class, with dense attention beside pyramid sparse attention, and the plan of what is read."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.benchmarks.psa import config_of_density, describe_pay
from hiergen.data.videos.files import write_gif
from hiergen.demo.inputs import add_buttons, add_guidance, add_seed
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained
from hiergen.demo.requests import GUIDANCE, SEED, check_label, check_ranges, to_seed
from hiergen.demo.steps import stream_steps, thinned
from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import PSAConfig, PyramidPlan, draw_plan
from hiergen.metrics.pixel import psnr

#: Queries and keys of a block: small, as clips of the demo are.
BLOCKS = (32, 16)
#: Small clips are shown this many times as large: a browser does not scale a GIF as it scales a picture.
ENLARGED = 6

#: The attention of a model is switched while it samples: one request at a time, however many the queue lets through.
_SWITCHED = threading.Lock()


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0.
        density: Share of the dense products that the sparse attention computes.
        guidance_scale: Guidance scale; 1 is no guidance.
        seed: Seed of all random draws; both clips start from the same noise.
    """

    label: int
    density: float = 0.25
    guidance_scale: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, density=(0.05, 0.9), guidance_scale=GUIDANCE, seed=SEED)


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
    """Yield the number of steps done and the clips so far: the dense one, then the sparse one.

    Raises:
        ValueError: If the class is unknown or a setting out of range.
        StoppedError: If it took longer than `seconds`.
    """
    check_label(entry, request.label)
    sparse = config_of_density(request.density, *BLOCKS, "pyramid")
    clips: list[Clip] = []

    def run(report: Callable[[tuple[int, tuple[Clip, ...]]], None]) -> None:
        done = 0

        def step(*_: Any) -> None:
            nonlocal done
            done += 1
            report((done, tuple(clips)))

        for attention in (None, sparse):
            clips.append(_draw(entry, request, attention, step))
            report((done, tuple(clips)))

    yield from stream_steps(run, seconds=seconds)


def warm_up(entry: DemoModel) -> None:
    """Sample a clip in one step, so that what sparse attention needs is imported, and draw its plan."""
    brief = dataclasses.replace(entry, notes=dataclasses.replace(entry.notes, sampling={"num_steps": 1}))
    sparse = config_of_density(0.5, *BLOCKS, "pyramid")
    clip = _draw(brief, VideoRequest(0), sparse, lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        _files((clip,), Path(folder))


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


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.video_generators()

    def run(
        title: str, label: int, density: float, guidance_scale: float, seed: float | None
    ) -> Iterator[tuple[Any, ...]]:
        request = VideoRequest(int(label), float(density), float(guidance_scale), to_seed(seed))
        # gradio copies each file when it is yielded, so these need live no longer than the request.
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as name:
            folder, shown = Path(name), 0
            made = generate_clips(library.get(title), request, seconds=page.settings.max_seconds)
            for steps, clips in thinned(made, lambda now: len(now[1])):
                status = "Done." if len(clips) == 2 else f"Step {steps}."
                if len(clips) == shown:
                    yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), status
                    continue
                shown = len(clips)
                yield (*_files(clips, folder), describe_clips(clips), status)

    first = library.get(titles[0])
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model")
            gr.Markdown(first.about, elem_classes="about")
            label = gr.Dropdown(first.choices(), value=min(3, first.num_classes - 1), label="Class")
            density = gr.Slider(0.05, 0.9, value=0.25, step=0.05, label="Density: share of the dense products")
            guidance = add_guidance(first.usual_guidance(2.0))
            seed = add_seed()
            start, stop = add_buttons("video")
            status = gr.Markdown(elem_id="video-status", elem_classes="status")
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                dense = page.picture("Dense attention", name="video-dense", height=260)
                sparse = page.picture("Pyramid sparse, from the same noise", name="video-sparse", height=260)
            numbers = gr.Markdown(elem_id="video-numbers")
            gr.Markdown("The plan of one head: how coarsely each block of queries reads each block of keys.")
            plan = gr.Image(
                show_label=False, interactive=False, format="png", buttons=["download"], elem_id="video-plan"
            )
    model.input(lambda title: gr.Dropdown(choices=library.get(title).choices(), value=0), model, label, queue=False, api_visibility="private")  # fmt: skip
    started = start.click(
        explained(run),
        [model, label, density, guidance, seed],
        [dense, sparse, plan, numbers, status],
        api_name="video",
        **{**page.event, "trigger_mode": "once", "show_progress_on": status},
    )
    page.stops(stop, status, [started])


def _files(clips: tuple[Clip, ...], folder: Path) -> tuple[str | None, str | None, str | None]:
    """Return the files of the dense clip, the sparse clip and the plan, as far as they are there."""
    made: list[str | None] = []
    for name, clip in zip(("dense", "sparse"), clips, strict=False):
        write_gif(folder / f"{name}.gif", clip.video, enlarge=max(1, ENLARGED * 32 // clip.video.shape[-1]))
        made.append(str(folder / f"{name}.gif"))
    made += [None] * (2 - len(made))
    plan = clips[-1].plan
    made.append(None if plan is None else str(draw_plan(plan, folder / "plan.png")))
    return made[0], made[1], made[2]
