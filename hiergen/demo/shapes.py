"""Tab "Shapes": meshes of a class or from a picture, the coarse level beside all of them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiergen.demo.inputs import (
    PictureInputs,
    add_buttons,
    add_guidance,
    add_model,
    add_picture,
    add_seed,
    choose_view,
    picked,
)
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import Page, explained, picture_files
from hiergen.demo.pictures import shape_views
from hiergen.demo.requests import GUIDANCE, SEED, check_label, check_ranges, to_seed
from hiergen.demo.steps import stream_steps, thinned
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_extraction import save_mesh
from hiergen.pipelines.shape import decode_meshes
from hiergen.pyramid import TokenPyramid

if TYPE_CHECKING:
    import trimesh
    from PIL import Image

#: Depths of the grid that a visitor may ask for: 33 to 129 nodes along each axis.
DEPTHS = (5, 6, 7)
#: Color of the meshes, RGBA of 255.
CLAY = (86, 122, 184, 255)


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


def warm_up(entry: DemoModel) -> None:
    """Make a small mesh of a model's tokens, so that what meshes need is imported."""
    tokenizer = entry.tokenizer
    levels = tuple(torch.zeros(1, spec.num_tokens, spec.dim, device=tokenizer.device) for spec in tokenizer.specs)
    (mesh,) = decode_meshes(tokenizer, TokenPyramid(levels, tokenizer.specs), ExtractionSettings(depth=DEPTHS[0]))
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        if len(mesh.faces):
            save_mesh(_painted(mesh), Path(folder) / "small.glb")


def describe_mesh(mesh: trimesh.Trimesh, num_tokens: int) -> str:
    """Return one line about a mesh."""
    if not len(mesh.faces):
        return f"{num_tokens} tokens: no surface came out. Try another seed."
    closed = "watertight" if mesh.is_watertight else "not watertight"
    return f"{num_tokens} tokens: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles, {closed}"


@dataclasses.dataclass(frozen=True)
class _Form:
    """Gradio's components of the left column."""

    model: Any
    about: Any
    label: Any
    pictures: Any
    inputs: PictureInputs
    guidance: Any
    depth: Any
    seed: Any
    start: Any
    stop: Any
    status: Any

    @property
    def chosen(self) -> list[Any]:
        """What chooses a picture: an upload, or the number of an example."""
        return [self.inputs.upload, self.inputs.example]


def add_tab(page: Page, library: Library) -> None:
    """Add the tab to the page that is being built."""
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            form = _add_form(library)
        with gr.Column(scale=2, min_width=300):
            viewers = _add_viewers()
    _connect_model(page, library, form)
    _connect_start(page, library, form, viewers)


def _add_form(library: Library) -> _Form:
    import gradio as gr

    titles = library.shape_generators()
    first = library.get(titles[0])
    choices = first.choices()
    model = add_model(titles, name="shapes-model")
    about = gr.Markdown(first.about, elem_classes="about")
    label = gr.Dropdown(
        choices, value=0 if choices else None, label="Class", elem_id="shapes-class", visible=bool(choices)
    )
    with gr.Column(visible=first.is_by_picture) as pictures:
        views = shape_views() if _takes_pictures(library) else ()
        inputs = add_picture(views, name="shapes", label="A view of a held-out shape", example=3, columns=4)
    guidance = add_guidance(first.usual_guidance(2.0))
    depth = gr.Radio([(f"{2**d + 1}", d) for d in DEPTHS], value=6, label="Points of the mesh's grid along each axis")
    seed = add_seed()
    start, stop = add_buttons("shapes")
    status = gr.Markdown(elem_id="shapes-status", elem_classes="status")
    return _Form(model, about, label, pictures, inputs, guidance, depth, seed, start, stop, status)


def _add_viewers() -> list[Any]:
    """Add both viewers with a line below each; return the viewers, then the lines."""
    import gradio as gr

    with gr.Row():
        with gr.Column(min_width=260):
            coarse, coarse_line = _viewer("Coarse level", "shapes-coarse"), gr.Markdown()
        with gr.Column(min_width=260):
            fine, fine_line = _viewer("All levels", "shapes-fine"), gr.Markdown()
    gr.Markdown("Drag to turn, scroll to zoom. The arrow in the corner of a view downloads its GLB file.")
    return [coarse, fine, coarse_line, fine_line]


def _connect_model(page: Page, library: Library, form: _Form) -> None:
    """Let the form follow the model, and show the picture that is chosen."""
    import gradio as gr

    def change(title: str) -> tuple[Any, ...]:
        entry = library.get(title)
        choices = entry.choices()
        return (
            gr.Dropdown(choices=choices, value=0 if choices else None, visible=bool(choices)),
            gr.Column(visible=entry.is_by_picture),
            gr.Slider(value=entry.usual_guidance(2.0)),
            entry.about,
        )

    def show(upload: bytes | None, example: float) -> Iterator[str]:
        with picture_files() as png:
            yield png(choose_view(upload, int(example), max_pixels=page.settings.max_pixels))

    quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
    form.model.input(change, form.model, [form.label, form.pictures, form.guidance, form.about], **quick)
    picked(form.inputs).success(explained(show), form.chosen, form.inputs.source, **quick)
    form.inputs.upload.upload(explained(show), form.chosen, form.inputs.source, **quick)
    if _takes_pictures(library):
        page.blocks.load(explained(show), form.chosen, form.inputs.source, **quick)


def _connect_start(page: Page, library: Library, form: _Form, viewers: list[Any]) -> None:
    """Let the buttons start and stop a generation, and offer the same to programs."""
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
        steps = _ask(page, library, title, label, upload, example, guidance_scale, depth, seed)
        with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
            for now in thinned(steps, lambda now: len(now.meshes), every=float("inf")):
                if now.meshes:
                    yield _shown(now, Path(folder))

    def run(*values: Any) -> Iterator[tuple[Any, ...]]:
        yield from _updates(_ask(page, library, *values))

    values = [form.model, form.label, *form.chosen, form.guidance, form.depth, form.seed]
    event = {**page.event, "trigger_mode": "once", "show_progress_on": form.status}
    started = form.start.click(explained(run), values, [*viewers, form.status], api_visibility="private", **event)
    # For programs: files, the coarse mesh first.
    files = [gr.File(visible=False), gr.File(visible=False), gr.Markdown(visible=False), gr.Markdown(visible=False)]
    gr.Button(visible=False).click(explained(answer), values, files, api_name="shapes", **page.event)
    page.stops(form.stop, form.status, [started])


def _ask(
    page: Page, library: Library, title: str, label: int | None, upload: bytes | None, example: float, *numbers: float
) -> Iterator[ShapeProgress]:
    """Return the steps of what the form asks for; the numbers are guidance scale, depth and seed, as the form has them."""
    guidance_scale, depth, seed = numbers
    entry, picture = library.get(title), None
    if entry.is_by_picture:
        picture = choose_view(upload, int(example), max_pixels=page.settings.max_pixels)
    request = ShapeRequest(int(label or 0), picture, float(guidance_scale), to_seed(seed), int(depth))
    return generate_shape(entry, request, seconds=page.settings.max_seconds)


def _updates(steps: Iterator[ShapeProgress]) -> Iterator[tuple[Any, ...]]:
    """Yield what the viewers, their lines and the status show."""
    import gradio as gr

    unchanged, sent, status = (gr.skip(), gr.skip(), gr.skip(), gr.skip()), 0, ""
    # gradio copies each file when it is yielded, so these need live no longer than the request.
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        for now in thinned(steps, lambda now: (len(now.meshes), now.is_done)):
            status = "Done." if now.is_done else f"Step {now.step}."
            shown = _shown(now, Path(folder)) if len(now.meshes) > sent else unchanged
            sent = len(now.meshes)
            yield (*shown, status)
        # A generator's last values are sent twice; a viewer that gets its mesh again while it loads it stays empty.
        yield (*unchanged, status)


def _takes_pictures(library: Library) -> bool:
    return any(library.get(title).is_by_picture for title in library.shape_generators())


def _viewer(label: str, name: str) -> Any:
    import gradio as gr

    return gr.Model3D(
        label=label,
        height=320,
        interactive=False,
        clear_color=(0.9, 0.92, 0.95, 1.0),
        elem_id=name,
        camera_position=(45, 65, 4),
    )


def _painted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return the mesh in a color that stands out from the viewer's background."""
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    material = PBRMaterial(baseColorFactor=CLAY, metallicFactor=0.0, roughnessFactor=0.9, doubleSided=True)
    painted = mesh.copy()
    painted.visual = TextureVisuals(material=material)
    return painted


def _shown(now: ShapeProgress, folder: Path) -> tuple[str | None, str | None, str, str]:
    """Return the files of the coarsest and the finest mesh, as far as they are there, and a line about each."""
    files: list[str | None] = []
    for mesh, tokens in zip(now.meshes, now.tokens, strict=True):
        path = folder / f"{tokens}-tokens.glb"
        if len(mesh.faces) and not path.exists():
            save_mesh(_painted(mesh), path)
        files.append(str(path) if len(mesh.faces) else None)
    lines = [describe_mesh(mesh, tokens) for mesh, tokens in zip(now.meshes, now.tokens, strict=True)]
    if len(files) == 1:
        return files[0], None, lines[0], ""
    return files[0], files[-1], lines[0], lines[-1]
