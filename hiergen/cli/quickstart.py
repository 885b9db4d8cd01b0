"""`hiergen quickstart [images|shapes|video|text]`: the main job on embedded data; images if no kind is named."""

from __future__ import annotations

import itertools

from hiergen.config import nearest, parse
from hiergen.quickstart.settings import (
    QuickstartSettings,
    ShapesQuickstartSettings,
    TextQuickstartSettings,
    VideoQuickstartSettings,
)

#: Kinds of data and the settings of their quickstarts.
KINDS = {
    "images": QuickstartSettings,
    "shapes": ShapesQuickstartSettings,
    "video": VideoQuickstartSettings,
    "text": TextQuickstartSettings,
}
#: Those that take several kinds of data, on which the other defaults depend.
WITH_DATA: dict[str, type[QuickstartSettings | VideoQuickstartSettings]] = {
    "images": QuickstartSettings,
    "video": VideoQuickstartSettings,
}


def main(args: list[str]) -> None:
    is_named = bool(args) and not args[0].startswith("-")
    kind, rest = (args[0], args[1:]) if is_named else ("images", args)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of quickstart {kind!r}{nearest(kind, KINDS)}")
    shown = kind if is_named else f"[{'|'.join(KINDS)}]"
    usual = WITH_DATA[kind].usual(_named_data(rest)) if kind in WITH_DATA else KINDS[kind]()
    settings = parse(usual, rest, prog=f"hiergen quickstart {shown}")
    from hiergen.environment import require

    # A missing package is told before PyTorch is loaded.
    if isinstance(settings, ShapesQuickstartSettings):
        for module in ("trimesh", "scipy", "skimage"):
            require(module, "shapes", "hiergen quickstart shapes")
        from hiergen.quickstart.shapes.run import run_shapes_quickstart

        run_shapes_quickstart(settings)
    elif isinstance(settings, VideoQuickstartSettings):
        require("av", "video", "hiergen quickstart video")
        from hiergen.quickstart.videos.run import run_video_quickstart

        run_video_quickstart(settings)
    elif isinstance(settings, TextQuickstartSettings):
        from hiergen.quickstart.texts.run import run_text_quickstart

        run_text_quickstart(settings)
    else:
        from hiergen.quickstart.images.run import run_quickstart

        run_quickstart(settings)


def _named_data(args: list[str]) -> str:
    """Return what `--data` names, on which the other defaults depend; "" where it is not there."""
    words = [part for word in args for part in word.split("=", 1)]
    return next((value for option, value in itertools.pairwise(words) if option == "--data"), "")
