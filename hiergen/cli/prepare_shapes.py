"""`hiergen prepare-shapes SRC OUT`: meshes, or the embedded set, as records to train shape tokenizers on."""

from __future__ import annotations

import sys

from hiergen.config import parse
from hiergen.telling import say, say_next


def main(args: list[str]) -> None:
    from hiergen.data.shapes.building import PrepareShapesSettings

    is_asked = bool({"-h", "--help"} & set(args))
    if len(args) < 2 or args[0].startswith("-") or args[1].startswith("-"):
        usage = "usage: hiergen prepare-shapes SRC OUT [options]   (SRC: a folder, a mesh file, or 'procedural')\n"
        print(usage, file=sys.stdout if is_asked else sys.stderr)
        if not is_asked:
            raise SystemExit(2)
        source, out, rest = "procedural", "shapes", ["--help"]
    else:
        source, out, *rest = args
    settings = parse(PrepareShapesSettings(source=source, out=out), rest, prog="hiergen prepare-shapes SRC OUT")
    from hiergen.data.shapes.preparation import prepare_shapes

    say(f"prepare-shapes: {source} -> {out}")
    summary = prepare_shapes(settings)
    print(summary)
    if not summary.num_prepared + summary.num_reused:
        raise SystemExit(1)
    say_next(f"hiergen train pyramid-vae-tiny --task.data.source {out}")
