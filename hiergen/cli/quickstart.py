"""`hiergen quickstart`: the main job on embedded data."""

from __future__ import annotations

from hiergen.config import parse


def main(args: list[str]) -> None:
    from hiergen.quickstart.images import QuickstartSettings, run_quickstart

    run_quickstart(parse(QuickstartSettings(), args, prog="hiergen quickstart"))
