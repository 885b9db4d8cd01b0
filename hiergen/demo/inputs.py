"""The parts of a tab that choose a picture: an example or an upload, and the model that sees it."""

# Without postponed annotations: gradio reads those of the functions that it calls, as classes.

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from hiergen.demo.page import Page, explained
from hiergen.demo.pictures import digit_examples, open_upload
from hiergen.tokenizers.base import Tokenizer

#: What may be uploaded as a picture.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def choose_image(tokenizer: Tokenizer, upload: bytes | None, example: int, *, max_pixels: int) -> Tensor:
    """Return the upload, or where there is none the example, as the tokenizer takes it: `(1, 3, h, w)` in [-1, 1].

    Raises:
        ValueError: If the upload is no picture, or the number names no example.
    """
    size = int(tokenizer.config["image_size"])
    if upload is not None:
        return open_upload(upload, size=size, max_pixels=max_pixels)
    images, _ = digit_examples(size)
    if not 0 <= example < len(images):
        raise ValueError(f"example is {example}, expected 0 to {len(images) - 1}")
    return images[example : example + 1]


@dataclasses.dataclass(frozen=True)
class PictureInputs:
    """Gradio's components: menu of models, what the model sees, upload, number of the example, examples."""

    model: Any
    source: Any
    upload: Any
    example: Any
    examples: Any


def add_inputs(titles: Sequence[str]) -> PictureInputs:
    """Add them to the page that is being built."""
    import gradio as gr

    model = gr.Dropdown(list(titles), value=titles[0], label="Model", elem_id="model")
    examples = gr.Gallery(
        list(digit_examples(32)[1]),
        label="A held-out digit",
        columns=5,
        rows=2,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        format="png",
        interactive=False,
        buttons=[],
        elem_classes=["pixels", "examples"],
    )
    # As bytes: gradio would leave an empty file behind for each path that it hands over.
    upload = gr.File(
        label="or a picture of yours",
        type="binary",
        file_types=list(PICTURE_SUFFIXES),
        height=120,
        elem_classes="upload",
    )
    source = gr.Image(
        label="As the model sees it", interactive=False, format="png", height=180, buttons=[], elem_classes="pixels"
    )
    example = gr.Number(3, label="example", precision=0, visible=False)
    return PictureInputs(model, source, upload, example, examples)


def connect(
    page: Page,
    run: Callable[..., Any],
    inputs: PictureInputs,
    outputs: list[Any],
    *,
    api_name: str,
    busy: Any,
    more: Sequence[Any] = (),
) -> None:
    """Run a function of (model, upload, example, *more) when the page opens and whenever one of these is chosen.

    Progress and errors are shown on `busy`.
    """
    import gradio as gr

    def pick(event: gr.SelectData) -> tuple[int, None]:
        return event.index, None

    picked = inputs.examples.select(
        pick, None, [inputs.example, inputs.upload], queue=False, show_progress="hidden", api_visibility="private"
    )
    values, event = [inputs.model, inputs.upload, inputs.example, *more], {**page.event, "show_progress_on": busy}
    picked.success(explained(run), values, outputs, api_visibility="private", **event)
    triggers = [page.blocks.load, inputs.upload.upload, *(part.input for part in (inputs.model, *more))]
    gr.on(triggers, explained(run), values, outputs, api_name=api_name, **event)
