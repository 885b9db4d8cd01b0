"""`hiergen quickstart-shapes`: the main job on the embedded shapes."""

from __future__ import annotations

from hiergen.config import parse
from hiergen.quickstart.settings import ShapesQuickstartSettings


def main(args: list[str]) -> None:
    settings = parse(ShapesQuickstartSettings(), args, prog="hiergen quickstart-shapes")
    from hiergen.quickstart.shapes.run import run_shapes_quickstart

    run_shapes_quickstart(settings)
