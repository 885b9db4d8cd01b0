"""The command line: `hiergen VERB ...`, one module of `hiergen.cli` a verb, its dashes written as underscores."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

#: Verbs and what they do, in the order of the help text. A test freezes this list.
VERBS = {
    "quickstart": "train a tokenizer and a generator on embedded digits, sample, score, draw",
    "quickstart-shapes": "the same on embedded procedural shapes, to meshes",
    "quickstart-video": "the same on embedded moving digits, to clips, with dense and with sparse attention",
    "prepare-shapes": "turn meshes into records to train shape tokenizers on",
    "info": "list presets, or describe one: parameters, levels, source",
    "train": "run a recipe; run it again to resume",
    "encode": "write a dataset as a cache of token pyramids",
    "reconstruct": "encode and decode images, level by level",
    "generate": "generate images from class labels",
    "evaluate": "measure a tokenizer or a generator: FID and the like, with a report; compare two reports",
    "demo": "look at models in the browser: reconstruct, generate, compare",
    "convert": "convert official weights to hiergen's layout",
    "bench": "measure speed side by side with a baseline",
}


def main(args: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 for an error that was explained, 2 for wrong usage, 128 + n for signal n."""
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from hiergen import __version__

        print(__version__)
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        from hiergen.config import nearest

        print(f"hiergen: unknown verb {verb!r}{nearest(verb, VERBS)}", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        return 2
    module = importlib.import_module(f"hiergen.cli.{verb.replace('-', '_')}")
    return explain(lambda: module.main(rest), f"hiergen {verb}")


def explain(run: Callable[[], object], name: str) -> int:
    """Run a program and return its exit code; an error that its user can mend is printed as a sentence, see `main`."""
    try:
        run()
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError) as error:
        # What a caller can get wrong is explained in a sentence; a traceback would hide it.
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped; run again to continue", file=sys.stderr)
        return 130
    except RuntimeError as error:
        number = getattr(error, "signal_number", None)
        if number is None:
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return 128 + int(number)
    return 0


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(["usage: hiergen VERB [options]   (hiergen VERB --help for the options)", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
