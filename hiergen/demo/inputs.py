"""The parts of a tab that choose: a model, a picture (an example or an upload), guidance, a seed, and when to start."""

# Without postponed annotations: gradio reads those of the functions that it calls, as classes.

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hiergen.data.images.files import SUFFIXES, read_image
from hiergen.data.images.pixels import center_crop, to_pictures, to_tensor
from hiergen.demo import clips
from hiergen.demo.clips import Film
from hiergen.demo.library import DemoModel, Library
from hiergen.demo.page import ROLL, Page, cached, explained
from hiergen.demo.pictures import digit_examples, open_upload, open_view, open_whole, shape_views
from hiergen.demo.requests import MAX_SEED

#: A frame of a clip has at most this share of the pixels that a picture may have.
FRAME_SHARE = 4


def choose_image(
    entry: DemoModel, upload: bytes | None, example: int, *, max_pixels: int, size: int | None = None
) -> Tensor:
    """Return the upload, or where there is none the example: `(1, 3, size, size)` in [-1, 1], of the model's size by default.

    An upload to a model that takes pictures apart in windows keeps its shape, where no size is asked for: `(1, 3, h, w)`.

    Raises:
        ValueError: If the upload is no picture, or the number names no example.
    """
    if upload is not None and size is None and entry.notes.whole:
        return open_whole(upload, longest=2 * entry.side, max_pixels=max_pixels)
    size = size or entry.side
    if upload is not None:
        return open_upload(upload, size=size, max_pixels=max_pixels)
    images, _ = examples_of(entry, size)
    _check_example(example, len(images))
    return images[example : example + 1]


def examples_of(entry: DemoModel, size: int | None = None) -> tuple[Tensor, str]:
    """Return pictures to try a model on, `(n, 3, size, size)` in [-1, 1], with a caption: of its own data, or digits."""
    size = size or entry.side
    if not entry.examples:
        return digit_examples(size)[0], "A held-out digit"
    images = [to_tensor(center_crop(read_image(path), size)) for path in entry.examples]
    return torch.stack(images), "A picture of its own data"


def choose_clip(entry: DemoModel, upload: bytes | None, example: int, *, max_pixels: int) -> tuple[Tensor, str]:
    """Return the upload, or where there is none the example, `(1, 3, t, h, w)` in [-1, 1], and what was done with its frames, in a sentence.

    Raises:
        ValueError: If the upload is no clip, or the number names no example.
        ImportError: If there is an upload and PyAV is not installed.
    """
    assert entry.clip_size is not None
    if upload is not None:
        # Many of them are decoded.
        return clips.open_clip(upload, *entry.clip_size, max_pixels=max_pixels // FRAME_SHARE)
    examples = clips.embedded_clips(entry.notes.clips, *entry.clip_size)
    _check_example(example, len(examples))
    return examples[example : example + 1], ""


def shown_examples(entry: DemoModel) -> tuple[Sequence[Image.Image | Film], str]:
    """Return the pictures or clips to try a model on, as the page shows them, with a caption."""
    if entry.clip_size is None:
        images, caption = examples_of(entry)
        return to_pictures(images), caption
    examples = clips.embedded_clips(entry.notes.clips, *entry.clip_size)
    return [Film.of(clip) for clip in examples], f"A held-out clip of {entry.notes.clips or 'digits'}"


def choose_view(upload: bytes | None, example: int, *, max_pixels: int) -> Image.Image:
    """Return the upload on a white square, or where there is none the view of a shape.

    Raises:
        ValueError: If the upload is no picture, or the number names no example.
        ImportError: If a library for meshes is not installed.
    """
    if upload is not None:
        return open_view(upload, max_pixels=max_pixels)
    views = shape_views()
    _check_example(example, len(views))
    return views[example]


def _check_example(example: int, count: int) -> None:
    if not 0 <= example < count:
        raise ValueError(f"example is {example}, expected 0 to {count - 1}")


@dataclasses.dataclass(frozen=True)
class PictureInputs:
    """Gradio's components: upload, number of the example, examples."""

    upload: Any
    example: Any
    examples: Any


def add_model(titles: Sequence[str], *, name: str) -> Any:
    """Add a menu of models to the page that is being built."""
    import gradio as gr

    return gr.Dropdown(list(titles), value=titles[0], label="Model", elem_id=name)


def add_picture(
    examples: Sequence[Image.Image | Film],
    *,
    name: str,
    label: str,
    example: int,
    columns: int = 5,
    of_clips: bool = False,
) -> PictureInputs:
    """Add examples and a place for uploads, of pictures or of clips, to the page that is being built."""
    import gradio as gr

    gallery = gr.Gallery(
        [cached(picture) for picture in examples],
        label=label,
        columns=columns,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        format="png",
        interactive=False,
        buttons=[],
        elem_id=f"{name}-examples",
        elem_classes=["pixels", "examples", f"columns-{columns}"],
    )
    # As bytes: gradio would leave an empty file behind for each path that it hands over.
    upload = gr.File(type="binary", **_taken(of_clips), height=150, elem_id=f"{name}-upload", elem_classes="upload")
    number = gr.Number(example, label="example", precision=0, visible=False)
    return PictureInputs(upload, number, gallery)


def _taken(is_of_clips: bool) -> dict[str, Any]:
    """Return how the place for uploads is called, and the suffixes that a browser offers there."""
    if is_of_clips:
        return {"label": "or a clip of yours: GIF, MP4, WebM", "file_types": list(clips.SUFFIXES)}
    return {"label": "or a picture of yours", "file_types": list(SUFFIXES)}


def add_guidance(usual: float) -> Any:
    """Add a slider of the guidance scale to the page that is being built."""
    import gradio as gr

    return gr.Slider(0, 8, value=usual, step=0.25, label="Guidance (1: none)")


def add_seed(name: str) -> tuple[Any, Any]:
    """Add a field for the seed with a dice, and whether each run takes a new one, to the page that is being built."""
    import gradio as gr

    with gr.Row(elem_classes="seed"):
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=100, elem_id=f"{name}-seed"
        )
        dice = gr.Button("\N{DIE FACE-5}", elem_id=f"{name}-dice", min_width=46)
    is_new = gr.Checkbox(True, label="A new seed each time", elem_id=f"{name}-new-seed")
    # Who rolls a seed wants to see what it gives.
    dice.click(None, None, [seed, is_new], js=f"() => [{ROLL}, false]", queue=False, api_visibility="private")
    return seed, is_new


def add_buttons(name: str) -> tuple[Any, Any]:
    """Add the buttons that start and stop a generation to the page that is being built."""
    import gradio as gr

    with gr.Row(elem_classes="go"):
        start = gr.Button("Generate", variant="primary", elem_id=f"{name}-start", min_width=100)
        return start, gr.Button("Stop", elem_id=f"{name}-stop", min_width=80)


def follow_model(library: Library, model: Any, inputs: PictureInputs) -> Any:
    """Show the examples of whichever model is chosen, and take away an upload that is of another kind; return the event."""
    import gradio as gr

    was_of_clips = gr.Checkbox(library.get(model.value).clip_size is not None, visible=False)

    def change(title: str, was_of_clips: bool) -> tuple[Any, ...]:
        entry = library.get(title)
        examples, label = shown_examples(entry)
        is_of_clips = entry.clip_size is not None
        gallery = gr.Gallery(value=[cached(picture) for picture in examples], label=label)
        return (
            gallery,
            gr.skip() if is_of_clips == was_of_clips else gr.File(value=None, **_taken(is_of_clips)),
            is_of_clips,
        )

    changed = [inputs.examples, inputs.upload, was_of_clips]
    return model.input(change, [model, was_of_clips], changed, queue=False, api_visibility="private")


def picked(inputs: PictureInputs) -> Any:
    """Return the event of choosing an example, which takes the place of an upload."""
    import gradio as gr

    def pick(event: gr.SelectData) -> tuple[int, None]:
        return event.index, None

    return inputs.examples.select(
        pick, None, [inputs.example, inputs.upload], queue=False, show_progress="hidden", api_visibility="private"
    )


def connect(
    page: Page,
    run: Callable[..., Any],
    model: Any,
    inputs: PictureInputs,
    outputs: list[Any],
    *,
    followed: Any,
    busy: Any,
    more: Sequence[Any] = (),
) -> None:
    """Run a function of (model, upload, example, *more) when the page opens and whenever one of these is chosen.

    The model's event is the one that `follow_model` returned; progress and errors are shown on `busy`.
    """
    import gradio as gr

    values = [model, inputs.upload, inputs.example, *more]
    event = {**page.event, "show_progress_on": busy, "api_visibility": "private"}
    for chosen in (picked(inputs), followed):
        chosen.success(explained(run), values, outputs, **event)
    triggers = [page.blocks.load, inputs.upload.upload, *(part.input for part in more)]
    gr.on(triggers, explained(run), values, outputs, **event)


def hidden_inputs(titles: Sequence[str], *, also: Sequence[str] = ()) -> list[Any]:
    """Return components for the model, the upload (of pictures, `also` other suffixes) and the example that a program sends; none is on the page."""
    import gradio as gr

    return [
        gr.Dropdown(list(titles), value=titles[0], visible=False),
        gr.File(type="binary", file_types=[*SUFFIXES, *also], visible=False),
        gr.Number(0, precision=0, visible=False),
    ]
