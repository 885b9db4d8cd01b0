"""`hiergen quickstart-video`: the main job on the embedded clips."""

from __future__ import annotations

from hiergen.config import parse


def main(args: list[str]) -> None:
    from hiergen.quickstart.videos import VideoQuickstartSettings, run_video_quickstart

    run_video_quickstart(parse(VideoQuickstartSettings(), args, prog="hiergen quickstart-video"))
