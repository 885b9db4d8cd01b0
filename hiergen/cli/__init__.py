"""The verbs of the command line, each in a module of its name: parse a dataclass, call the library, print. Here is what verbs share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Folder of the pipeline that `hiergen quickstart` leaves, with which other verbs begin.
QUICKSTART = "quickstart/pipeline"


def check_exists(option: str, path: str, expected: str) -> None:
    """Check a path that a command line names, before any model is loaded.

    Raises:
        ValueError: If there is nothing.
    """
    if not Path(path).exists():
        raise ValueError(f"{option} is {path!r}, which does not exist; expected {expected}")


def check_model(option: str, path: str) -> None:
    """Check that a model is a folder, a packaged model or may be one on the Hub, before anything else is loaded.

    Raises:
        ValueError: If it is none of these.
    """
    from hiergen.pipelines.loading import resolve

    if path.partition("/")[0] == QUICKSTART.partition("/")[0] and not Path(path).is_dir():
        raise ValueError(
            f"{option} is {path!r}, which does not exist: run `hiergen quickstart` first, or name another, e.g. {option} digits-1d"
        )
    try:
        resolve(path)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def open_model(path: str, device: str, *, part: str | None = None) -> Any:
    """Return a saved model in eval mode, or a pipeline, on a device.

    Args:
        path: What `from_pretrained` takes.
        device: Name of the device, see `choose_device`.
        part: Part of a pipeline to return of it, e.g. "tokenizer"; a model that is no pipeline is returned whole.
    """
    from hiergen.environment import choose_device
    from hiergen.pipelines.loading import from_pretrained

    chosen = choose_device(device)
    from diffusers.utils import logging

    # They speak of the inside of diffusers; that all weights are there is checked by `from_pretrained`.
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    model = from_pretrained(path)
    parts = getattr(model, "components", {})
    model = parts.get(part, model)
    return model.to(chosen) if "generator" in getattr(model, "components", {}) else model.eval().to(chosen)


def describe(model: Any) -> str:
    """Return what a model is: its class, its parameters and its device."""
    parts = getattr(model, "components", {"": model}).values()
    count = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return f"{type(model).__name__} of {count:,} parameters on {model.device}"


@contextlib.contextmanager
def encoding_progress(tokenizer: Any, total: int, unit: str, *, variants: int = 1) -> Iterator[Callable[[int], None]]:
    """Show how far an encoding is, pass by pass; what is given is called with the number of samples whose codes are on disk.

    Args:
        tokenizer: The tokenizer, whose passes are counted.
        total: Number of samples.
        unit: Name of a sample.
        variants: Number of encodings of each sample.
    """
    from hiergen.telling import progress

    encode, seen = tokenizer.encode, {"written": 0, "passed": 0}
    with progress("encode", total, unit) as show:

        def counting(*args: Any, **kwargs: Any) -> Any:
            pyramid = encode(*args, **kwargs)
            seen["passed"] += pyramid.batch_size
            show(min(seen["written"] + seen["passed"] // variants, total))
            return pyramid

        def written(done: int) -> None:
            seen.update(written=done, passed=0)
            show(done)

        tokenizer.encode = counting
        try:
            yield written
        finally:
            del tokenizer.encode
