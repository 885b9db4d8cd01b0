"""`hiergen quickstart-shapes`: the main job on the embedded shapes."""

from __future__ import annotations

from hiergen.config import parse


def main(args: list[str]) -> None:
    from hiergen.quickstart.shapes import ShapesQuickstartSettings, run_shapes_quickstart

    run_shapes_quickstart(parse(ShapesQuickstartSettings(), args, prog="hiergen quickstart-shapes"))
