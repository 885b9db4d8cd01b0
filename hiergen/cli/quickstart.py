"""`hiergen quickstart`: the main job on embedded data."""

from __future__ import annotations

from hiergen.config import parse
from hiergen.quickstart.settings import QuickstartSettings


def main(args: list[str]) -> None:
    settings = parse(QuickstartSettings(), args, prog="hiergen quickstart")
    from hiergen.quickstart.images.run import run_quickstart

    run_quickstart(settings)
