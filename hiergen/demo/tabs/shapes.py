"""Tab "Shapes": meshes of a class or from a picture, the coarse level beside all of them."""

from __future__ import annotations

import dataclasses
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hiergen.demo.inputs import (
    PictureInputs,
    add_buttons,
    add_guidance,
    add_model,
    add_picture,
    add_seed,
    choose_view,
    hidden_inputs,
    picked,
)
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained
from hiergen.demo.pictures import shape_views
from hiergen.demo.requests import GUIDANCE, SEED, check_label, check_ranges, read_query, to_seed
from hiergen.demo.stage import View, draw_empty, draw_stage, result
from hiergen.demo.steps import stream_steps, thinned
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.renders import STUDIO, render_mesh, save_turntable
from hiergen.geometry.surface_extraction import save_mesh
from hiergen.pipelines.shape import decode_meshes
from hiergen.pyramid import TokenPyramid

if TYPE_CHECKING:
    import trimesh
    from PIL import Image

#: Depths of the grid that a visitor may ask for: 33 to 129 nodes along each axis.
DEPTHS = (5, 6, 7)
#: Side of a picture of a mesh in pixels; side and number of pictures of a turn.
STILL, TURNTABLE = 320, (224, 20)
#: What an empty stage says.
EMPTY = "Press Generate: the coarse level comes first, then the whole."


@dataclasses.dataclass(frozen=True)
class ShapeRequest:
    """What is asked for.

    Attributes:
        label: Class, from 0; read by a model of classes.
        picture: Picture of an object, square, on white; read by a model of pictures.
        guidance_scale: Guidance scale; 1 is no guidance.
        seed: Seed of all random draws.
        depth: The meshes come from a grid of `2 ** depth + 1` nodes along each axis.
    """

    label: int = 0
    picture: Image.Image | None = None
    guidance_scale: float = 2.0
    seed: int = 0
    depth: int = 6

    def __post_init__(self) -> None:
        check_ranges(self, guidance_scale=GUIDANCE, seed=SEED, depth=(DEPTHS[0], DEPTHS[-1]))


@dataclasses.dataclass(frozen=True)
class ShapeProgress:
    """How far a generation is.

    Attributes:
        step: Number of steps done.
        meshes: Meshes from one level, two levels, ..., as far as they are complete; without faces where there is no surface.
        tokens: Number of tokens of each mesh.
        is_done: Whether this is the result.
    """

    step: int
    meshes: tuple[trimesh.Trimesh, ...]
    tokens: tuple[int, ...]
    is_done: bool


def generate_shape(entry: DemoModel, request: ShapeRequest, *, seconds: float) -> Iterator[ShapeProgress]:
    """Yield the progress of a generation: the coarse mesh as soon as it is there; the last one is the result.

    Raises:
        ValueError: If the class is unknown, or there is no picture for a model that needs one.
        StoppedError: If it took longer than `seconds`.
    """
    condition = request.picture if entry.is_by_picture else request.label
    if condition is None:
        raise ValueError("picture is None, expected a picture: this model makes shapes of what it sees")
    if not entry.is_by_picture:
        check_label(entry, request.label)
    extraction = ExtractionSettings(**{**entry.notes.extraction, "depth": request.depth})
    meshes: list[trimesh.Trimesh] = []
    tokens: list[int] = []

    def add_levels(pyramid: TokenPyramid) -> None:
        # Levels are alternative resolutions of one shape: a mesh is decoded from the finest that is given.
        for count in range(len(meshes) + 1, len(pyramid) + 1):
            part = pyramid.prefix(count)
            meshes.append(decode_meshes(entry.tokenizer, part, extraction)[0])
            tokens.append(part.specs[-1].num_tokens)

    def run(report: Callable[[ShapeProgress], None]) -> None:
        def show(pipe: Any, step: int, timestep: Any, shown: dict[str, Any]) -> dict[str, Any]:
            if shown["pyramid"] is not None and len(shown["pyramid"]) < len(entry.tokenizer.specs):
                add_levels(shown["pyramid"])
            report(ShapeProgress(step + 1, tuple(meshes), tuple(tokens), is_done=False))
            return shown

        result = entry.model(
            condition,
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


def draw_views(entry: DemoModel, now: ShapeProgress, name: str, *, turning: bytes | None = None) -> list[View]:
    """Return what the stage shows: each level's mesh in the studio; the finest one turning where that is made."""
    views = []
    for number, (mesh, tokens) in enumerate(zip(now.meshes, now.tokens, strict=True), start=1):
        picture = turning if turning is not None and number == len(now.meshes) else _still(mesh)
        level = f"level {number}" if len(entry.tokenizer.specs) > 1 else "the mesh"
        views.append(View((picture,), level, f"{tokens} tokens", f"Generated: {name}, {level}, {tokens} tokens"))
    return views


def _still(mesh: trimesh.Trimesh) -> bytes:
    """Return a picture of a mesh as WebP: a tenth of a PNG, and a render has no pixel to keep."""
    from PIL import Image

    empty = np.full((STILL, STILL, 3), np.rint(255 * np.asarray(STUDIO.background)), np.uint8)
    picture = render_mesh(mesh, STILL, settings=STUDIO) if len(mesh.faces) else empty
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=88)
    return buffer.getvalue()


def _turn(mesh: trimesh.Trimesh) -> bytes | None:
    if not len(mesh.faces):
        return None
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        path = Path(folder) / "turning.webp"
        save_turntable(mesh, path, *TURNTABLE)
        return path.read_bytes()


def _result(
    entry: DemoModel, request: ShapeRequest, last: ShapeProgress, turning: bytes | None = None
) -> dict[str, Any]:
    name = "of the picture" if request.picture is not None else entry.class_name(request.label)
    line = f"{name}, seed {request.seed}. {describe_mesh(last.meshes[-1], last.tokens[-1])}."
    chosen = {"label": request.label, "guidance_scale": request.guidance_scale, "seed": request.seed}
    place = ("shapes", entry.title) if request.picture is None else None
    return result(draw_views(entry, last, name, turning=turning), title=name, line=line, chosen=chosen, place=place)


def make_ready(entry: DemoModel, *, seconds: float, limit: float) -> list[dict[str, Any]]:
    """Return finished results of a model of classes, as many as are done within some seconds."""
    made: list[dict[str, Any]] = []
    started = time.monotonic()
    for label in range(0 if entry.is_by_picture else entry.num_classes):
        if time.monotonic() - started >= seconds:
            break
        request = ShapeRequest(label, guidance_scale=entry.usual_guidance(2.0))
        *_, last = generate_shape(entry, request, seconds=limit)
        made.append(_result(entry, request, last))
    return made


@dataclasses.dataclass(frozen=True)
class _Form:
    """Gradio's components of the column that chooses."""

    model: Any
    label: Any
    pictures: Any
    inputs: PictureInputs
    guidance: Any
    depth: Any
    turns: Any
    seed: tuple[Any, Any]
    start: Any
    stop: Any

    @property
    def values(self) -> list[Any]:
        """What a generation is asked with."""
        chosen = [self.inputs.upload, self.inputs.example]
        return [self.model, self.label, *chosen, self.guidance, self.depth, self.seed[0], self.turns]


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    titles, limits = library.shape_generators(), page.settings
    ready = {
        title: make_ready(library.get(title), seconds=limits.ready_seconds, limit=limits.max_seconds)
        for title in titles
    }
    with gr.Row(elem_classes="tab"):
        with gr.Column(scale=5, min_width=300):
            stage = page.stage(ready[titles[0]], EMPTY, name="shapes-stage")
            status = page.status("shapes-status")
            viewer = gr.Model3D(
                label="All levels as a GLB file: drag to turn, scroll to zoom",
                height=300,
                interactive=False,
                clear_color=(0.93, 0.94, 0.96, 1.0),
                elem_id="shapes-viewer",
                camera_position=(45, 65, 4),
            )
        with gr.Column(scale=2, min_width=280):
            form = _add_form(library)
            strip, made = page.strip(ready[titles[0]], name="shapes-strip")
            about = gr.Markdown(library.get(titles[0]).about, elem_classes="about")

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        *asked, turns = values
        entry, request = _request(page, library, *asked)
        yield from _updates(entry, request, generate_shape(entry, request, seconds=limits.max_seconds), bool(turns))

    def change(title: str) -> tuple[Any, ...]:
        entry = library.get(title)
        choices = entry.choices()
        return (
            gr.Dropdown(choices=choices, value=0 if choices else None, visible=bool(choices)),
            gr.Column(visible=entry.is_by_picture),
            gr.Slider(value=entry.usual_guidance(2.0)),
            entry.about,
            ready[title][0]["stage"] if ready[title] else draw_empty(EMPTY),
            {"items": ready[title], "at": 0},
        )

    def again(asked: dict[str, str]) -> tuple[Any, ...]:
        request, (label, pictures, _, *others) = read_query(ShapeRequest, asked), change(asked.get("model", ""))
        check_label(library.get(asked["model"]), request.label)
        label = gr.Dropdown(choices=library.get(asked["model"]).choices(), value=request.label, visible=True)
        return asked["model"], label, pictures, request.guidance_scale, *others, request.seed, False

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    changed = [form.label, form.pictures, form.guidance, about, stage, strip]
    form.model.input(change, form.model, changed, **quick)
    page.links["shapes"] = again, [form.model, *changed, *form.seed]
    picked(form.inputs)
    # The viewer still has the mesh before: it is taken away.
    page.chooses(strip, made, [stage, status]).then(
        lambda chosen: (chosen["label"], chosen["guidance_scale"], chosen["seed"], None),
        made,
        [form.label, form.guidance, form.seed[0], viewer],
        **quick,
    )
    outputs = [stage, viewer, status, made]
    page.starts(form.start, form.stop, explained(run), form.values, outputs, seed=form.seed, strip=strip)
    _answer_programs(page, library)


def _add_form(library: Library) -> _Form:
    import gradio as gr

    titles = library.shape_generators()
    first = library.get(titles[0])
    choices = first.choices()
    model = add_model(titles, name="shapes-model")
    label = gr.Dropdown(
        choices, value=0 if choices else None, label="Class", elem_id="shapes-class", visible=bool(choices)
    )
    with gr.Column(visible=first.is_by_picture) as pictures:
        takes_pictures = any(library.get(title).is_by_picture for title in titles)
        views = shape_views() if takes_pictures else ()
        inputs = add_picture(views, name="shapes", label="A view of a held-out shape", example=3, columns=4)
    start, stop = add_buttons("shapes")
    with gr.Accordion("Settings", open=False, elem_id="shapes-settings"):
        guidance = add_guidance(first.usual_guidance(2.0))
        depth = gr.Radio([(f"{2**d + 1}", d) for d in DEPTHS], value=6, label="Points of the grid along each axis")
        turns = gr.Checkbox(True, label="Turn it around", elem_id="shapes-turns")
        seed = add_seed("shapes")
    return _Form(model, label, pictures, inputs, guidance, depth, turns, seed, start, stop)


def _request(
    page: Page, library: Library, title: str, label: int | None, upload: bytes | None, example: float, *numbers: float
) -> tuple[DemoModel, ShapeRequest]:
    """Return what the form asks for; the numbers are guidance scale, depth and seed, as the form has them."""
    guidance_scale, depth, seed = numbers
    entry, picture = library.get(title), None
    if entry.is_by_picture:
        picture = choose_view(upload, int(example), max_pixels=page.settings.max_pixels)
    return entry, ShapeRequest(int(label or 0), picture, float(guidance_scale), to_seed(seed), int(depth))


def _updates(
    entry: DemoModel, request: ShapeRequest, steps: Iterator[ShapeProgress], turns: bool
) -> Iterator[tuple[Any, ...]]:
    """Yield stage, viewer, status, and in the end the entry for the strip."""
    import gradio as gr

    unchanged, sent = (gr.skip(), gr.skip()), 0
    # gradio copies each file when it is yielded, so these need live no longer than the request.
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        for now in thinned(steps, lambda now: (len(now.meshes), now.is_done)):
            if now.is_done:
                made = _result(entry, request, now)
                yield (
                    made["stage"],
                    _files(now, Path(folder))[-1],
                    "Done." if not turns else "Turning it around.",
                    made,
                )
                if turns and (turning := _turn(now.meshes[-1])) is not None:
                    made = _result(entry, request, now, turning)
                yield made["stage"], gr.skip(), "Done.", made
            elif len(now.meshes) > sent:
                sent = len(now.meshes)
                yield draw_stage(draw_views(entry, now, "a shape")), None, f"Step {now.step}.", None
            else:
                yield *unchanged, f"Step {now.step}.", None


def _files(now: ShapeProgress, folder: Path) -> list[str | None]:
    """Write the mesh of each level that has a surface; return the files, None for the others."""
    files: list[str | None] = []
    for number, (mesh, tokens) in enumerate(zip(now.meshes, now.tokens, strict=True), start=1):
        path = folder / f"level-{number}-{tokens}-tokens.glb"
        if len(mesh.faces) and not path.exists():
            save_mesh(mesh, path)
        files.append(str(path) if len(mesh.faces) else None)
    return files


def _answer_programs(page: Page, library: Library) -> None:
    """Offer the same to programs: files, the coarse mesh first, and a line about each."""
    import gradio as gr

    # The parameters are named in the interface for programs.
    def answer(
        title: str,
        label: int | None,
        upload: bytes | None,
        example: float,
        guidance_scale: float,
        depth: int,
        seed: float,
    ) -> Iterator[tuple[Any, ...]]:
        entry, request = _request(page, library, title, label, upload, example, guidance_scale, depth, seed)
        steps = generate_shape(entry, request, seconds=page.settings.max_seconds)
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
            for now in thinned(steps, lambda now: len(now.meshes), every=float("inf")):
                if now.meshes:
                    files = _files(now, Path(folder))
                    lines = [describe_mesh(mesh, tokens) for mesh, tokens in zip(now.meshes, now.tokens, strict=True)]
                    is_one = len(files) == 1
                    yield files[0], None if is_one else files[-1], lines[0], "" if is_one else lines[-1]

    titles = library.shape_generators()
    model, upload, example = hidden_inputs(titles)
    values = [
        model,
        gr.Number(0, precision=0, visible=False),
        upload,
        example,
        gr.Slider(*GUIDANCE, value=2.0, visible=False),
        gr.Radio(list(DEPTHS), value=6, visible=False),
        gr.Number(0, precision=0, visible=False),
    ]
    files: list[Any] = [gr.File(visible=False), gr.File(visible=False)]
    page.answers(
        explained(answer), values, [*files, gr.Markdown(visible=False), gr.Markdown(visible=False)], api_name="shapes"
    )
