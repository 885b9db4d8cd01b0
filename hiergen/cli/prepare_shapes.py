"""`hiergen prepare-shapes SRC OUT`: meshes, or the embedded set, as records to train shape tokenizers on."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shlex
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Literal

from hiergen.config import overlay, parse
from hiergen.data.shapes.building import PRESETS, PrepareShapesSettings
from hiergen.telling import say_next


@dataclasses.dataclass(frozen=True)
class PrepareShapesOptions(PrepareShapesSettings):
    """Turn meshes into records to train shape tokenizers on.

    Attributes:
        preset: Sizes that other options are on top of: "paper" for models of a paper's size; "tiny" for the small recipes, in a
            small part of the time.
    """

    preset: Literal["paper", "tiny"] = "paper"


class Stopped(KeyboardInterrupt):  # no error: what is finished stays
    """The preparation was asked to stop by SIGTERM, which ends it as Ctrl-C does."""

    signal_number = signal.SIGTERM


def main(args: list[str]) -> None:
    is_asked = bool({"-h", "--help"} & set(args))
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        if not is_asked:
            usage = "usage: hiergen prepare-shapes SRC OUT [options]   (SRC: a folder, a mesh file, or 'procedural')"
            print(usage, file=sys.stderr)
            raise SystemExit(2)
        source, out, rest = "procedural", "shapes", ["--help"]
    else:
        source, out, *rest = args
    prog = "hiergen prepare-shapes SRC OUT"
    # Read first, because the other options are on top of it; a wrong one is refused with them.
    preset = next((value for value in _values(rest, "--preset") if value in PRESETS), "paper")
    settings = parse(overlay(PrepareShapesOptions(source=source, out=out), PRESETS[preset]), rest, prog=prog)
    from hiergen.data.shapes.preparation import prepare_shapes

    with _stopped_by_signal():
        summary = prepare_shapes(settings, command=shlex.join(["hiergen", "prepare-shapes", *args]))
    print(summary)
    if not summary.num_prepared + summary.num_reused:
        raise SystemExit(1)
    say_next(f"hiergen train pyramid-vae-tiny --task.data.source {shlex.quote(out)}")


def _values(words: list[str], option: str) -> list[str]:
    """Return what follows an option of a command line, as `option value` or `option=value`."""
    after = [word for before, word in itertools.pairwise(words) if before == option]
    return after + [word.removeprefix(f"{option}=") for word in words if word.startswith(f"{option}=")]


@contextlib.contextmanager
def _stopped_by_signal() -> Iterator[None]:
    """Inside, SIGTERM raises, so that what is finished is listed and the processes are ended."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
