"""What the tabs share: the stage, the strip of results, the queue, and errors as sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from hiergen.demo.clips import Film
from hiergen.demo.requests import MAX_SEED
from hiergen.demo.settings import DemoSettings
from hiergen.demo.stage import CHOOSE, KEEP, STRIP_SCRIPT, STRIP_TEMPLATE, draw_empty
from hiergen.demo.steps import StoppedError

if TYPE_CHECKING:
    import gradio as gr

#: A new seed, in the browser.
ROLL = f"Math.floor(Math.random() * {MAX_SEED})"
#: What a user can get wrong, or the demo stops: shown as a sentence. Anything else is a fault of ours and stays in the server's log.
EXPLAINED = (ValueError, TypeError, ImportError, StoppedError)


@dataclasses.dataclass(frozen=True)
class Page:
    """The page that is being built.

    Attributes:
        blocks: The page as gradio's blocks.
        settings: Limits of the demo.
        tabs: The tabs, as gradio's component.
        links: By the name of a tab, what sets its form to the settings in an address, and the parts of the form that it sets.
    """

    blocks: gr.Blocks
    settings: DemoSettings
    tabs: gr.Tabs
    links: dict[str, tuple[Callable[[dict[str, str]], Sequence[Any]], list[Any]]] = dataclasses.field(
        default_factory=dict
    )

    @property
    def event(self) -> dict[str, Any]:
        """How a request that runs a model is queued: all of them share one line."""
        return {
            "concurrency_limit": self.settings.concurrency,
            "concurrency_id": "models",
            "show_progress": "minimal",
            "trigger_mode": "always_last",
        }

    def stage(self, ready: Sequence[dict[str, Any]], text: str, *, name: str) -> gr.HTML:
        """Add the stage, with the first of the results that are ready, or else a sentence."""
        import gradio as gr

        return gr.HTML(ready[0]["stage"] if ready else draw_empty(text), elem_id=name, apply_default_css=False)

    def status(self, name: str) -> gr.Markdown:
        """Add the line that says how far a computation is."""
        import gradio as gr

        return gr.Markdown(elem_id=name, elem_classes="status")

    def strip(self, ready: Sequence[dict[str, Any]], *, name: str) -> tuple[gr.HTML, gr.JSON]:
        """Add the strip of results, and a place for the entry that is being made or was chosen."""
        import gradio as gr

        strip = gr.HTML(
            {"items": list(ready), "at": 0},
            html_template=STRIP_TEMPLATE,
            js_on_load=STRIP_SCRIPT,
            apply_default_css=False,
            elem_id=name,
        )
        return strip, gr.JSON(visible=False)

    def chooses(self, strip: gr.HTML, made: gr.JSON, shown: list[Any]) -> Any:
        """Return the event of choosing a result, which puts it on the stage and its sentence below; the server is not asked."""
        return strip.select(None, [strip], [*shown, made], js=CHOOSE, queue=False, api_visibility="private")

    def starts(
        self,
        start: gr.Button,
        stop: gr.Button,
        run: Callable[..., Any],
        inputs: list[Any],
        outputs: list[Any],
        *,
        seed: tuple[Any, Any],
        strip: gr.HTML,
        also: Any = None,
    ) -> None:
        """Let a button run a function, from a new seed where that is ticked, and put what comes of it first in the strip.

        Args:
            start: Button that starts it.
            stop: Button that ends it.
            run: Function of the inputs, a generator of the outputs.
            inputs: What it is given.
            outputs: Stage, more that it shows, then the status and the entry for the strip.
            seed: Field of the seed, and whether each run takes a new one.
            strip: Strip of results.
            also: A field in which the Enter key starts it too; None for none.
        """
        import gradio as gr

        *_, status, made = outputs
        quick: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        triggers = [start.click, *([] if also is None else [also.submit])]
        rolled = gr.on(triggers, None, list(seed), seed[0], js=f"(seed, isNew) => isNew ? {ROLL} : seed", **quick)
        # One at a time: a second press while the first runs does nothing.
        event = {**self.event, "trigger_mode": "once", "show_progress_on": status}
        started = rolled.then(run, inputs, outputs, api_visibility="private", **event)
        started.success(None, [made, strip], strip, js=KEEP, **quick)
        stopped = stop.click(None, cancels=[started], **quick)
        # Only then: a step that was already on its way would have the last word.
        stopped.then(lambda: "Stopped.", None, status, show_progress="hidden", **quick)

    def follow_links(self) -> None:
        """Let an address that names a result open its tab, set the form to its settings, and make it again."""
        import gradio as gr

        def follow(asked: dict[str, str]) -> list[Any]:
            updates: list[Any] = [gr.Tabs(selected=asked["tab"]) if asked.get("tab") in self.links else gr.skip()]
            for name, (again, parts) in self.links.items():
                updates += again(asked) if asked.get("tab") == name else [gr.skip()] * len(parts)
            return updates

        asked = gr.JSON(visible=False)
        outputs = [self.tabs, *(part for _, parts in self.links.values() for part in parts)]
        quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        query = "Object.fromEntries(new URLSearchParams(location.search))"
        # Not outside of the queue, where a refusal is not told to anybody.
        loaded = self.blocks.load(explained(follow), asked, outputs, js=f"() => [{query}]", **quick)
        # A tab is built when it is first opened: its button may be a moment late.
        press = "const press = (tries) => {const button = document.getElementById(name + '-start'); if (button) button.click(); else if (tries) setTimeout(press, 100, tries - 1)}"
        loaded.success(None, js=f"() => {{const name = {query}.tab; {press}; if (name) press(100)}}", **quick)

    def answers(self, run: Callable[..., Any], inputs: list[Any], outputs: list[Any], *, api_name: str) -> None:
        """Offer a function to programs; none of its components is on the page."""
        import gradio as gr

        gr.Button(visible=False).click(run, inputs, outputs, api_name=api_name, **self.event)


@contextlib.contextmanager
def picture_files(*, of_clips: str = "GIF") -> Iterator[Callable[[Image.Image | Film], str]]:
    """Yield a function that writes a picture to a PNG file, or a clip to a GIF or WebP file, and returns its path; the files are gone afterwards.

    gradio copies a file whole into its cache before it is named to anybody. A picture in memory it would write in place, over the
    same picture that another visitor is just fetching.
    """
    with tempfile.TemporaryDirectory(prefix="hiergen-demo-") as folder:
        numbers = itertools.count()

        def write(picture: Image.Image | Film) -> str:
            path = Path(folder) / f"hiergen-{next(numbers)}"
            if isinstance(picture, Film):
                path = path.with_suffix(f".{of_clips.lower()}")
                path.write_bytes(picture.encoded(of_clips))
            else:
                path = path.with_suffix(".png")
                picture.save(path)
            return str(path)

        yield write


def cached(picture: Image.Image | Film) -> str:
    """Return the path of a picture or clip in gradio's cache. There it is whole before it is named; what is there already is not written again."""
    from gradio import processing_utils, utils

    with picture_files(of_clips="WEBP") as write:
        return processing_utils.save_file_to_cache(write(picture), utils.get_upload_folder())


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
