"""The verbs of the command line, each in a module of its name (`verb_module`): parse a dataclass, call the library, print. Here is what verbs share."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: Verbs and what they do, in the order of the help text. A test freezes this list.
VERBS = {
    "quickstart": "train a tokenizer and a generator on embedded images, shapes or clips; sample, score, draw",
    "info": "list presets and packaged models, or describe one: parameters, levels, source",
    "recipes": "list the recipes that come with the package, show one, or copy one to edit",
    "train": "run a recipe, by name or file; run it again to resume",
    "encode": "write a dataset as a cache of token pyramids",
    "reconstruct": "encode and decode images, level by level",
    "generate": "generate images, clips or meshes from class labels, or meshes from pictures",
    "edit": "change pictures: what a mask shows, their surroundings, their fine levels; blend two",
    "evaluate": "measure a tokenizer or a generator: FID and the like, with a report; compare two reports",
    "convert": "convert official weights to hiergen's layout",
    "bench": "measure speed side by side with a baseline",
    "demo": "look at models in the browser: reconstruct, generate, compare",
    "env": "print what a report of a fault should say: versions, processor, threads, GPUs, caches",
    "prepare-shapes": "turn meshes into records to train shape tokenizers on",
    "completion": "print a script that completes verbs and options in bash, zsh or fish",
}

#: Verbs whose modules have a folder of their own.
_FOLDERS = {"env": "machine", "completion": "machine"}

#: Folder of the pipeline that `hiergen quickstart` leaves, with which other verbs begin.
QUICKSTART = "quickstart/pipeline"


def verb_module(verb: str) -> Any:
    """Return the module of a verb, whose `main` takes the other words of the command line."""
    folder = f"{_FOLDERS[verb]}." if verb in _FOLDERS else ""
    return importlib.import_module(f"hiergen.cli.{folder}{verb.replace('-', '_')}")


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


def open_model(
    path: str, device: str, *, part: str | None = None, dtype: str | None = None, compile: bool = False
) -> Any:
    """Return a saved model in eval mode, or a pipeline, on a device.

    Args:
        path: What `from_pretrained` takes.
        device: Name of the device, see `choose_device`.
        part: Part of a pipeline to return of it, e.g. "tokenizer"; a model that is no pipeline is returned whole.
        dtype: Name of the number format of the weights; "auto" is what `choose_dtype` takes for the device, None float32.
        compile: Whether to compile what generating and decoding repeat. The bars of a pipeline are off: verbs draw their own.
    """
    import torch

    from hiergen.environment import choose_device, choose_dtype
    from hiergen.pipelines.loading import from_pretrained

    chosen = choose_device(device)
    quiet_diffusers()
    weights = choose_dtype(chosen) if dtype == "auto" else getattr(torch, dtype or "float32")
    model = from_pretrained(path, dtype=weights, compile=compile)
    model = parts_of(model).get(part or "", model)
    if not parts_of(model):
        return model.eval().to(chosen)
    model.set_progress_bar_config(disable=True)
    return model.to(chosen)


def quiet_diffusers() -> None:
    """Keep diffusers' warnings away, which speak of its inside, and its bars out of whatever is no terminal.

    That all weights are there is checked by `from_pretrained`.
    """
    from diffusers.utils import logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def parts_of(model: Any) -> dict[str, Any]:
    """Return the parts of a pipeline by name; none of any other model."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return dict(model.components) if isinstance(model, DiffusionPipeline) else {}


def describe(model: Any) -> str:
    """Return what a model is: its class, its parameters and its device."""
    parts = parts_of(model) or {"": model}
    count = sum(parameter.numel() for part in parts.values() for parameter in part.parameters())
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
