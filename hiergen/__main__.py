"""The command line: `hiergen VERB ...`. Each verb has a module of `hiergen.cli`."""

from __future__ import annotations

import dis
import os
import signal
import sys
import traceback
from collections.abc import Callable

from hiergen.cli import VERBS, verb_module

#: Verbs that compute for long, and so look first at what the machine has free.
LONG_VERBS = ("quickstart", "train", "encode", "reconstruct", "generate", "edit", "evaluate")
FAULT = "This is a fault of hiergen and not of its use: please report it with this traceback and the output of `hiergen env`."


def main(args: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 for an error that was explained, 2 for wrong usage, 128 + n for signal n."""
    given = list(sys.argv[1:] if args is None else args)
    argv = [word for word in given if word != "--traceback"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-v", "-V", "--version"):
        from hiergen import __version__

        print(__version__)
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in VERBS:
        from hiergen.config import nearest

        print(f"hiergen: unknown verb {verb!r}{nearest(verb, VERBS)}", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        return 2
    if verb in LONG_VERBS and not {"-h", "--help"} & set(rest):
        from hiergen.environment import share_cores

        if said := share_cores():
            print(f"hiergen {verb}: {said}", file=sys.stderr)
    module = verb_module(verb)
    return explain(lambda: module.main(rest), f"hiergen {verb}", shows_traceback=argv != given)


def explain(run: Callable[[], object], name: str, *, shows_traceback: bool = False) -> int:
    """Run a program and return its exit code, see `main`.

    An error that its user can mend is printed as a sentence. Any other is raised, with a note that asks to report it.

    Args:
        run: The program.
        name: Name of the program, which begins the sentence.
        shows_traceback: Print the whole traceback of every error; so does the environment variable HIERGEN_TRACEBACK=1.
    """
    try:
        run()
    except KeyboardInterrupt as stop:
        print(f"{name}: stopped; run again to continue", file=sys.stderr)
        return 128 + int(getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` has. What is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        said = sentence(error)
        if said is None:
            error.add_note(FAULT)
            raise
        if shows_traceback or os.environ.get("HIERGEN_TRACEBACK") == "1":
            traceback.print_exception(error)
        print(f"{name}: {said}", file=sys.stderr)
        number = getattr(error, "signal_number", None)
        return 1 if number is None else 128 + int(number)
    return 0


def sentence(error: Exception) -> str | None:
    """Return what an error says to the user of a program, or None if it is a fault of the program.

    A user can mend what our own code refuses (a ValueError and the like that a `raise` statement of hiergen raises), what the operating
    system refuses, and a package that is missing. The interpreter and libraries raise the same types for our mistakes.
    """
    if isinstance(error, OSError) or hasattr(error, "signal_number"):
        return str(error)
    if isinstance(error, ImportError) and not (error.name or "").startswith("hiergen"):
        return str(error)
    if not isinstance(error, ValueError | TypeError | FloatingPointError) or error.__traceback__ is None:
        return None
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    module, code = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code
    if module == "torch._utils":
        # A data worker sends its error as text, with the traceback in it.
        place = str(error).rpartition('  File "')[2]
        is_ours = f"hiergen{os.sep}" in place.partition("\n")[0] and "\n    raise " in place
        return place.rpartition(f"\n{type(error).__name__}: ")[2].strip() if is_ours else None
    is_ours = module.partition(".")[0] == "hiergen" and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return str(error) if is_ours else None


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in VERBS.items()]
    usage = "usage: hiergen VERB [options]   (hiergen VERB --help for the options; --traceback shows where an error came from)"
    return "\n".join([usage, "", *lines])


if __name__ == "__main__":
    sys.exit(main())
