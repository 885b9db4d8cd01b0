"""What the tabs share: pictures with hard pixels, strips of levels, the queue, and errors as sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hiergen.demo.settings import DemoSettings
from hiergen.demo.steps import StoppedError

if TYPE_CHECKING:
    import gradio as gr

#: What a user can get wrong, or the demo stops: shown as a sentence. Anything else is a fault of ours and stays in the server's log.
EXPLAINED = (ValueError, TypeError, ImportError, StoppedError)


@dataclasses.dataclass(frozen=True)
class Page:
    """The page that is being built.

    Attributes:
        blocks: The page as gradio's blocks.
        settings: Limits of the demo.
    """

    blocks: gr.Blocks
    settings: DemoSettings

    @property
    def event(self) -> dict[str, Any]:
        """How a request that runs a model is queued: all of them share one line."""
        return {
            "concurrency_limit": self.settings.concurrency,
            "concurrency_id": "models",
            "show_progress": "minimal",
            "trigger_mode": "always_last",
        }

    def picture(self, label: str, *, name: str, height: int = 320) -> gr.Image:
        """Add a picture that is shown with hard pixels and downloaded as it is, without loss."""
        import gradio as gr

        return gr.Image(
            label=label,
            interactive=False,
            format="png",
            height=height,
            buttons=["download", "fullscreen"],
            elem_id=name,
            elem_classes="pixels",
        )

    def row(self, label: str, *, name: str, columns: int = 5) -> gr.Gallery:
        """Add a row of pictures, one per level."""
        import gradio as gr

        return gr.Gallery(
            label=label,
            columns=columns,
            height="auto",
            object_fit="contain",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            elem_id=name,
            elem_classes=["pixels", "strip", f"columns-{columns}"],
        )

    def stops(self, button: gr.Button, status: gr.Markdown, running: list[Any]) -> None:
        """Let a button cancel the events that are running, and say so."""
        stopped = button.click(None, cancels=running, queue=False, api_visibility="private")
        # Only then: a step that was already on its way would have the last word.
        stopped.then(lambda: "Stopped.", None, status, queue=False, show_progress="hidden", api_visibility="private")


@contextlib.contextmanager
def picture_files() -> Iterator[Callable[[Image.Image], str]]:
    """Yield a function that writes a picture to a PNG file and returns its path; the files are gone afterwards.

    gradio copies a file whole into its cache before it is named to anybody. A picture in memory it would write in place, over the
    same picture that another visitor is just fetching.
    """
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        numbers = itertools.count()

        def write(picture: Image.Image) -> str:
            path = Path(folder) / f"hiergen-{next(numbers)}.png"
            picture.save(path)
            return str(path)

        yield write


def explained(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the page whose errors reach the browser as sentences."""
    import gradio as gr

    def sentence(error: BaseException) -> gr.Error:
        text = str(error)
        return gr.Error(text[:1].upper() + text[1:], title="That did not work", print_exception=False)

    if inspect.isgeneratorfunction(run):

        @functools.wraps(run)
        def steps(*values: Any, **named: Any) -> Iterator[Any]:
            try:
                yield from run(*values, **named)
            except EXPLAINED as error:
                raise sentence(error) from error

        return steps

    @functools.wraps(run)
    def once(*values: Any, **named: Any) -> Any:
        try:
            return run(*values, **named)
        except EXPLAINED as error:
            raise sentence(error) from error

    return once
