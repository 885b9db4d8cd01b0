"""The stage of a tab: one large picture, a slider from its coarsest level to all of them, and the strip of results below.

A result is HTML with its pictures inside. So it needs no file on the server, and the browser keeps the results that it was given.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import urllib.parse
from collections.abc import Sequence
from typing import Any

from PIL import Image

#: Side in pixels of the small pictures in the strip of results, and under the slider; smaller pictures are left as they are.
THUMB = 96
#: Pictures and clips of at least so many pixels are shown smoothly; smaller ones with hard pixels, as they are.
SMOOTH = 48
#: Largest size of a pixel on the stage.
MAX_SCALE = 14


@dataclasses.dataclass(frozen=True)
class View:
    """What is on the stage while one step of the slider is chosen.

    Attributes:
        pictures: What is shown, side by side: pictures, or the bytes of an animated WebP or GIF.
        name: Name of the step, e.g. "2 levels".
        size: What it holds, in small print below the name.
        alt: What the pictures show, in words, for who cannot see them; one text for all, or one for each.
        captions: A line below each picture; none where it is empty. A single picture that shows several side by side has one for each of them.
        small: What stands for it below the slider; None for the last of the pictures.
    """

    pictures: Sequence[Image.Image | bytes]
    name: str
    size: str
    alt: str | Sequence[str]
    captions: Sequence[str] = ()
    small: Image.Image | bytes | None = None


def draw_stage(views: Sequence[View], *, line: str = "", link: str = "") -> str:
    """Return the HTML of a stage on which the last view is chosen.

    Args:
        views: The steps of the slider, coarse to fine; a single one has no slider.
        line: A sentence below the pictures; text, not HTML.
        link: What an address ends in that makes the same again; none where it is empty.
    """
    last = len(views)
    blocks = "".join(
        f'<div class="hg-view{" is-shown" if number == last else ""}" style="--columns:{_columns(view)};--side:{_side(view)}px">{_figures(view)}</div>'
        for number, view in enumerate(views, start=1)
    )
    told = f'<p class="hg-line">{html.escape(line)}</p>' if line else ""
    return f'<div class="hg-stage" style="--steps:{last}"><div class="hg-views">{blocks}</div>{_slider(views)}{told}{_tools(link)}</div>'


def _tools(link: str) -> str:
    """Return the buttons that keep what is on the stage: its picture as a file, its settings as an address."""
    save = '<button type="button" onclick="hiergenSave(this)">Save the picture</button>'
    copy = (
        f'<button type="button" data-link="{html.escape(link)}" onclick="hiergenLink(this)">Copy a link to it</button>'
    )
    return f'<p class="hg-tools">{save}{copy if link else ""}</p>'


def draw_empty(text: str) -> str:
    """Return the HTML of a stage on which nothing is yet, with a sentence in its place."""
    return f'<div class="hg-stage"><div class="hg-views"><div class="hg-empty">{html.escape(text)}</div></div></div>'


def draw_row(title: str, pictures: Sequence[tuple[Image.Image | bytes, str]], *, is_natural: bool = False) -> str:
    """Return the HTML of a row of pictures, each with a caption, under a title: all equally wide, or pixel for pixel."""
    cells = "".join(
        f"<figure>{draw_picture(picture, f'{title}: {caption}')}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for picture, caption in pictures
    )
    return f'<h3 class="hg-title">{html.escape(title)}</h3><div class="hg-row{" is-natural" if is_natural else ""}">{cells}</div>'


def draw_picture(picture: Image.Image | bytes, alt: str) -> str:
    """Return the HTML of a picture that holds its data. A GIF is a clip, an animated WebP a render."""
    size = picture.size if isinstance(picture, Image.Image) else Image.open(io.BytesIO(picture)).size
    kind = "pixels" if min(size) < SMOOTH else "smooth"
    return f'<img class="hg-{kind}" src="{as_uri(picture)}" alt="{html.escape(alt, quote=True)}">'


def as_uri(picture: Image.Image | bytes) -> str:
    """Return an address that holds a picture: a still one as PNG, without loss, an animated one as the WebP or GIF that it is."""
    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        data, kind = buffer.getvalue(), "png"
    else:
        data, kind = picture, "gif" if picture.startswith(b"GIF") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def result(
    views: Sequence[View], *, title: str, line: str, chosen: dict[str, Any], place: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return an entry of the strip of results, as JSON values.

    Args:
        views: What its stage shows.
        title: Words below its small picture; text, not HTML.
        line: A sentence below the pictures on the stage.
        chosen: What the form is set to when the entry is chosen.
        place: Tab and model, where these and what is chosen are all that is needed to make it again: it then has an address.
    """
    link = "" if place is None else address(place, chosen)
    return {
        "thumb": as_uri(_small(views[-1].pictures[0])),
        "title": html.escape(title, quote=True),
        "stage": draw_stage(views, line=line, link=link),
        "line": line,
        "chosen": chosen,
    }


def address(place: tuple[str, str], chosen: dict[str, Any]) -> str:
    """Return what an address ends in that makes a result of a tab and model again, from what was chosen; `path` is told by the label."""
    asked = {name: value for name, value in chosen.items() if name != "path" and value not in ("", None)}
    return urllib.parse.urlencode({"tab": place[0], "model": place[1], **asked})


def _small(picture: Image.Image | bytes) -> Image.Image | bytes:
    if not isinstance(picture, Image.Image) or max(picture.size) <= THUMB:
        return picture
    small = picture.copy()
    small.thumbnail((THUMB, THUMB))
    return small


def _columns(view: View) -> int:
    return {1: 1, 2: 2, 3: 3, 4: 2, 5: 3, 6: 3}.get(len(view.pictures), 4)


def _side(view: View) -> int:
    """Return how wide a picture of few pixels may become; others may fill the stage."""
    first = view.pictures[0]
    return MAX_SCALE * first.width if isinstance(first, Image.Image) else 640


def _figures(view: View) -> str:
    alts = [view.alt] * len(view.pictures) if isinstance(view.alt, str) else view.alt
    captions = [html.escape(caption) for caption in view.captions]
    if len(view.pictures) == 1 and captions:
        captions = ["".join(f"<span>{caption}</span>" for caption in captions)]
    captions += [""] * (len(view.pictures) - len(captions))
    return "".join(
        f"<figure>{draw_picture(picture, alt)}"
        + (f"<figcaption>{caption}</figcaption>" if caption else "")
        + "</figure>"
        for picture, alt, caption in zip(view.pictures, alts, captions, strict=True)
    )


def _slider(views: Sequence[View]) -> str:
    if len(views) == 1:
        return f'<p class="hg-single">{html.escape(views[0].name)}<small>{html.escape(views[0].size)}</small></p>'
    last = len(views)
    steps = "".join(
        f'<button type="button" class="hg-step{" is-shown" if number == last else ""}" onclick="hiergenShow(this, {number})">'
        f"{draw_picture(_small(view.pictures[-1] if view.small is None else view.small), '')}<span>{html.escape(view.name)}</span><small>{html.escape(view.size)}</small></button>"
        for number, view in enumerate(views, start=1)
    )
    name = html.escape(f"From {views[0].name} to {views[-1].name}", quote=True)
    slider = f'<input type="range" min="1" max="{last}" value="{last}" aria-label="{name}" oninput="hiergenShow(this, this.value)">'
    return f'<div class="hg-slider">{slider}<div class="hg-steps">{steps}</div></div>'


#: Runs in the page's head: the slider and the small pictures below it choose what the stage shows.
SCRIPT = """
<script>
function hiergenShow(part, number) {
  const stage = part.closest('.hg-stage');
  for (const kind of ['.hg-view', '.hg-step'])
    stage.querySelectorAll(kind).forEach((node, index) => node.classList.toggle('is-shown', index + 1 === Number(number)));
  stage.querySelector('input[type=range]').value = number;
}
function hiergenSave(button) {
  for (const picture of button.closest('.hg-stage').querySelectorAll('.hg-view.is-shown figure:last-child img')) {
    const link = document.createElement('a');
    link.href = picture.src;
    link.download = picture.alt.replace(/[^\\p{L}\\p{N}]+/gu, '-').slice(0, 100) + '.' + picture.src.match(/^data:image.(\\w+)/)[1];
    link.click();
  }
}
function hiergenLink(button) {
  const address = location.origin + location.pathname + '?' + button.dataset.link;
  history.replaceState(null, '', address);
  // Browsers give pages that are not encrypted no clipboard; the address is in its bar all the same.
  if (navigator.clipboard) navigator.clipboard.writeText(address).catch(() => {});
  button.textContent = navigator.clipboard ? 'Copied' : 'In the address bar';
}
</script>
"""

#: The strip of results as gradio's HTML draws it from its value, `{"items": [...], "at": 0}`, and how one is chosen.
STRIP_TEMPLATE = """<h3 class="hg-title">Results</h3><div class="hg-strip">${(value?.items ?? []).map((item, index) =>
`<button type="button" data-index="${index}" title="${item.title}"><img src="${item.thumb}" alt="${item.title}"><span>${item.title}</span></button>`
).join('') || '<p>What you make is kept here.</p>'}</div>"""
STRIP_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (button) {
    props.value = {...props.value, at: Number(button.dataset.index)};
    trigger('select');
  }
});
"""
#: What happens in the browser where an entry of the strip is chosen: its stage and its settings.
CHOOSE = "(strip) => { const item = strip.items[strip.at]; return [item.stage, , item.chosen]; }"
#: A new result goes before the others, at most this many of them are kept.
KEEP = "(made, strip) => made?.thumb ? {items: [made, ...strip.items].slice(0, 24), at: 0} : strip"
