"""A picture to paint on: gradio's editor, of which the server reads only what was painted, and no more than it must."""

# Without postponed annotations: gradio reads those of the functions that it calls, as classes.

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hiergen.data.images.files import read_image
from hiergen.demo.page import cached

#: Side of the picture that is painted on, in pixels; smaller ones are enlarged.
SIDE = 512
#: The brush: half transparent, so that one sees what is painted over.
COLOR, BRUSH = "rgba(37, 99, 235, 0.6)", 40
#: Most layers of a painting, and most paintings of which the server keeps layers at once.
MAX_LAYERS, MAX_PAINTINGS = 4, 32


def add_painter(picture: Image.Image, *, name: str, max_bytes: int) -> Any:
    """Add a picture to paint on to the page that is being built; what a function is given of it is where was painted, `(h, w)` bool, or None.

    Args:
        picture: The picture at first.
        name: Id of the part of the page.
        max_bytes: Most bytes of a layer that the browser sends.
    """
    import gradio as gr
    from gradio.components.base import server
    from gradio.components.image_editor import AcceptBlobs, EditorData, EditorDataBlobs

    brush = gr.Brush(default_size=BRUSH, colors=[COLOR], default_color=COLOR, color_mode="fixed")
    painter = gr.ImageEditor(
        background(picture),
        label="Paint over a part",
        brush=brush,
        eraser=gr.Eraser(default_size=BRUSH),
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        canvas_size=(SIDE, SIDE),
        format="png",
        elem_id=name,
        elem_classes="painter",
    )
    stored = painter.blob_storage

    def read(payload: EditorData | None) -> Any:
        if payload is None:
            return None
        kept = None if payload.id is None else stored.pop(payload.id, None)
        layers = payload.layers if kept is None else kept.layers
        return painted([layer if isinstance(layer, bytes) else _read(layer) for layer in layers if layer])

    @server
    def accept_blobs(data: AcceptBlobs) -> None:
        index, painting = str(data.data["index"]), str(data.data["id"])[:100]
        if data.data["type"] != "layer" or not index.isdecimal() or int(index) >= MAX_LAYERS:
            return
        if len(data.files[0][1]) > max_bytes:
            return
        if painting not in stored and len(stored) >= MAX_PAINTINGS:
            stored.pop(next(iter(stored)))
        empty = EditorDataBlobs(background=None, layers=[None] * MAX_LAYERS, composite=None)
        stored.setdefault(painting, empty).layers[int(index)] = data.files[0][1]

    # Gradio's own keep whatever they are sent, and open pictures of any size. A class of ours it would write a stub file for.
    painter.preprocess = read  # type: ignore[method-assign]
    painter.accept_blobs = accept_blobs
    return painter


def background(picture: Image.Image) -> Any:
    """Return a picture as the editor shows it, nothing painted on it."""
    large = cached(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return {"background": large, "layers": [], "composite": large}


def painted(layers: list[bytes]) -> np.ndarray | None:
    """Return where something was painted, `(h, w)` bool; None where nothing was.

    Raises:
        ValueError: If a layer is no picture, has another size than the first, or more pixels than the editor's.
    """
    found: np.ndarray | None = None
    for layer in layers:
        alpha = np.asarray(read_image("what was painted", data=layer, max_pixels=4 * SIDE**2, mode="RGBA"))[..., 3] > 0
        if found is not None and found.shape != alpha.shape:
            raise ValueError(
                f"what was painted has layers of shape {found.shape} and {alpha.shape}, expected equal ones"
            )
        found = alpha if found is None else found | alpha
    return found if found is not None and found.any() else None


def _read(layer: Any) -> bytes:
    return Path(layer.path).read_bytes()
