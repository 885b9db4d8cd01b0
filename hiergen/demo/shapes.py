"""Tab "Shapes": meshes of a class, the coarse level beside all of them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiergen.data.surface_extraction import ExtractionSettings, save_mesh
from hiergen.demo.generate import MAX_SEED
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained
from hiergen.demo.steps import stream_steps
from hiergen.pipelines.shape import decode_meshes
from hiergen.pyramid import TokenPyramid

if TYPE_CHECKING:
    import trimesh

#: Depths of the grid that a visitor may ask for: 33 to 129 nodes an axis.
DEPTHS = (5, 6, 7)


@dataclasses.dataclass(frozen=True)
class ShapeRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0.
        guidance_scale: 1 is no guidance.
        seed: Of everything random.
        depth: The meshes come from a grid of `2 ** depth + 1` nodes an axis.
    """

    label: int
    guidance_scale: float = 2.0
    seed: int = 0
    depth: int = 6

    def __post_init__(self) -> None:
        for name, least, most in (
            ("guidance_scale", 0, 20),
            ("seed", 0, MAX_SEED),
            ("depth", DEPTHS[0], DEPTHS[-1]),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} is {value}, expected {least} to {most}")


@dataclasses.dataclass(frozen=True)
class ShapeProgress:
    """How far a generation is.

    Attributes:
        step: Steps done.
        meshes: From one level, two, ..., as far as they are complete; without faces where there is no surface.
        tokens: Number of tokens of each.
        is_done: Whether this is the result.
    """

    step: int
    meshes: tuple[trimesh.Trimesh, ...]
    tokens: tuple[int, ...]
    is_done: bool


def generate_shape(entry: DemoModel, request: ShapeRequest, *, seconds: float) -> Iterator[ShapeProgress]:
    """Yield the progress of a generation: the coarse mesh as soon as it is there; the last one is the result.

    Raises:
        ValueError: If the class is unknown or a setting out of range.
        StoppedError: If it took longer than `seconds`.
    """
    if not 0 <= request.label < entry.num_classes:
        raise ValueError(f"label is {request.label}, expected 0 to {entry.num_classes - 1}")
    extraction = ExtractionSettings(depth=request.depth)
    meshes: list[trimesh.Trimesh] = []
    tokens: list[int] = []

    def add_levels(pyramid: TokenPyramid) -> None:
        # Levels are alternative resolutions of one shape: a mesh is decoded from the finest that is given.
        for count in range(len(meshes) + 1, len(pyramid) + 1):
            part = pyramid.prefix(count)
            meshes.append(decode_meshes(entry.tokenizer, part, extraction)[0])
            tokens.append(part.specs[-1].num_tokens)

    def run(report: Callable[[ShapeProgress], None]) -> None:
        def show(pipe: Any, step: int, shown: dict[str, Any]) -> None:
            if shown["pyramid"] is not None and len(shown["pyramid"]) < len(entry.tokenizer.specs):
                add_levels(shown["pyramid"])
            report(ShapeProgress(step + 1, tuple(meshes), tuple(tokens), is_done=False))

        result = entry.model(
            request.label,
            generator=torch.Generator(entry.model.device).manual_seed(request.seed),
            callback_on_step_end=show,
            extraction=extraction,
            **{**entry.notes.sampling, "guidance_scale": request.guidance_scale},
        )
        add_levels(result.pyramid)
        report(ShapeProgress(0, tuple(meshes), tuple(tokens), is_done=True))

    yield from stream_steps(run, seconds=seconds)


def describe_mesh(mesh: trimesh.Trimesh, num_tokens: int) -> str:
    """Return one line about a mesh."""
    if not len(mesh.faces):
        return f"{num_tokens} tokens: no surface came out. Try another seed."
    closed = "watertight" if mesh.is_watertight else "not watertight"
    return f"{num_tokens} tokens: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles, {closed}"


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles = library.shape_generators()

    def run(title: str, label: int, guidance_scale: float, depth: int, seed: float) -> Iterator[tuple[Any, ...]]:
        request = ShapeRequest(label=int(label), guidance_scale=float(guidance_scale), seed=int(seed), depth=int(depth))
        unchanged, sent = (gr.skip(), gr.skip(), gr.skip(), gr.skip()), 0
        # gradio copies each file when it is yielded, so these need live no longer than the request.
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
            for now in generate_shape(library.get(title), request, seconds=page.settings.max_seconds):
                status = "Done." if now.is_done else f"Step {now.step}."
                shown = _shown(now, Path(folder)) if len(now.meshes) > sent else unchanged
                sent = len(now.meshes)
                yield (*shown, status)
            # A generator's last values are sent twice; a viewer that gets its mesh again while it loads it stays empty.
            yield (*unchanged, status)

    def answer(title: str, label: int, guidance_scale: float, depth: int, seed: float) -> Iterator[tuple[Any, ...]]:
        request = ShapeRequest(label=int(label), guidance_scale=float(guidance_scale), seed=int(seed), depth=int(depth))
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
            *_, last = generate_shape(library.get(title), request, seconds=page.settings.max_seconds)
            yield _shown(last, Path(folder))

    first = library.get(titles[0])
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            model = gr.Dropdown(titles, value=titles[0], label="Model")
            about = gr.Markdown(first.notes.about, elem_classes="about")
            label = gr.Dropdown(first.choices(), value=0, label="Class", elem_id="shapes-class")
            guidance = gr.Slider(
                0, 8, value=first.notes.sampling.get("guidance_scale", 2.0), step=0.25, label="Guidance (1: none)"
            )
            depth = gr.Radio([(f"{2**d + 1} nodes an axis", d) for d in DEPTHS], value=6, label="Grid of the mesh")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="shapes-start", min_width=100)
                stop = gr.Button("Stop", elem_id="shapes-stop", min_width=100)
            status = gr.Markdown(elem_id="shapes-status")
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                with gr.Column(min_width=260):
                    coarse = _viewer("Coarse level", "shapes-coarse")
                    coarse_line = gr.Markdown()
                with gr.Column(min_width=260):
                    fine = _viewer("All levels", "shapes-fine")
                    fine_line = gr.Markdown()
            gr.Markdown("Drag to turn, scroll to zoom. The arrow in the corner of a view downloads its GLB file.")

    def change(title: str) -> tuple[Any, ...]:
        entry = library.get(title)
        return gr.Dropdown(choices=entry.choices(), value=0), entry.notes.about

    model.input(change, model, [label, about], queue=False, api_visibility="private")
    inputs, event = (
        [model, label, guidance, depth, seed],
        {**page.event, "trigger_mode": "once", "show_progress_on": status},
    )
    started = start.click(
        explained(run), inputs, [coarse, fine, coarse_line, fine_line, status], api_visibility="private", **event
    )
    # For programs: everything at once, as files.
    files = [gr.File(visible=False), gr.File(visible=False), gr.Markdown(visible=False), gr.Markdown(visible=False)]
    gr.Button(visible=False).click(explained(answer), inputs, files, api_name="shapes", **page.event)
    stop.click(lambda: "Stopped.", None, status, cancels=[started], queue=False, api_visibility="private")


def _viewer(label: str, name: str) -> Any:
    import gradio as gr

    return gr.Model3D(
        label=label,
        height=320,
        interactive=False,
        clear_color=(0.96, 0.97, 0.98, 1.0),
        elem_id=name,
        camera_position=(45, 65, 4),
    )


def _shown(now: ShapeProgress, folder: Path) -> tuple[str | None, str | None, str, str]:
    """Return the files of the coarsest and the finest mesh, as far as they are there, and a line about each."""
    files: list[str | None] = []
    for mesh, tokens in zip(now.meshes, now.tokens, strict=True):
        path = folder / f"{tokens}-tokens.glb"
        if len(mesh.faces) and not path.exists():
            save_mesh(mesh, path)
        files.append(str(path) if len(mesh.faces) else None)
    lines = [describe_mesh(mesh, tokens) for mesh, tokens in zip(now.meshes, now.tokens, strict=True)]
    if len(files) == 1:
        return files[0], None, lines[0], ""
    return files[0], files[-1], lines[0], lines[-1]
