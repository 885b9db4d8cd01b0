"""`hiergen quickstart-video`: the main job on the embedded clips."""

from __future__ import annotations

from hiergen.config import parse
from hiergen.quickstart.settings import VideoQuickstartSettings


def main(args: list[str]) -> None:
    settings = parse(VideoQuickstartSettings(), args, prog="hiergen quickstart-video")
    from hiergen.quickstart.videos.run import run_video_quickstart

    run_video_quickstart(settings)
