"""Parts of a long measurement, each in a process of its own with a share of the time.

A part that raises, hangs, dies or leaves the device unusable is recorded, and the next one begins on a fresh device.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hiergen.files import write_json
from hiergen.telling import say

#: What a part measured, piece by piece: names and JSON values. What came before a fault is kept.
Pieces = Iterator[tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a measurement.

    Attributes:
        measure: Function of a module, called with the sizes of the measurement in the part's own process.
        weight: Share of the time that is left, in proportion to the weights of this part and of those behind it. Time that a part does
            not need is left to the others.
    """

    measure: Callable[[Any], Pieces]
    weight: float


def run_parts(
    parts: Mapping[str, Part], sizes: Any, *, seconds: float, output: Path, preload: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the parts one after another; the file is written anew after each.

    Args:
        parts: Parts by name, in their order.
        sizes: What every part is called with; it must pickle.
        seconds: Time for all of them together. A part that is still running when its share is spent is ended.
        output: JSON file for what is returned.
        preload: Modules that are imported once for all parts. They must not touch the device.

    Returns:
        Under "parts" for each its "state" ("done", "failed", "out of time", "died"), "seconds", the "traceback" or "exit_code" where there
        is one, and under "found" its pieces. Under "seconds" the time of all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    # What is imported once for all parts is imported now, and takes no part's time.
    run_part(context, Part(_nothing, 1.0), sizes, 600.0)
    found: dict[str, Any] = {"parts": {}, "seconds": 0.0}
    started = time.monotonic()
    weights = [part.weight for part in parts.values()]
    for index, (name, part) in enumerate(parts.items()):
        left = max(started + seconds - time.monotonic(), 0.0)
        found["parts"][name] = run_part(context, part, sizes, left * part.weight / sum(weights[index:]))
        found["seconds"] = time.monotonic() - started
        write_json(output, found)
        say(f"{name}: {found['parts'][name]['state']} after {found['parts'][name]['seconds']:.1f} s")
    return found


def _nothing(sizes: Any) -> Pieces:
    yield from ()


def attempt(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or its traceback under "error": one case of many may fail alone."""
    try:
        return call()
    except Exception:
        return {"error": traceback.format_exc()}


def run_part(context: Any, part: Part, sizes: Any, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own and return its entry, see `run_parts`.

    Args:
        context: What `multiprocessing.get_context` returned.
        part: The part; its weight is not read.
        sizes: What it is called with.
        seconds: Time after which it is ended.
    """
    entry: dict[str, Any] = {"state": "out of time", "seconds": 0.0, "limit": seconds, "found": {}}
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part.measure, sizes, writer))
    started = time.monotonic()
    process.start()
    # The part's end is the only one, so that its death is seen as the end of the pipe.
    writer.close()
    try:
        while reader.poll(max(started + seconds - time.monotonic(), 0.0)):
            kind, name, value = reader.recv()
            if kind == "piece":
                entry["found"][name] = value
                continue
            entry["state"] = kind
            if kind == "failed":
                entry["traceback"] = value
            break
    except EOFError:
        process.join()
        entry |= {"state": "died", "exit_code": process.exitcode}
    finally:
        if entry["state"] == "out of time":
            process.kill()
        process.join()
        reader.close()
    entry["seconds"] = time.monotonic() - started
    return entry


def _work(measure: Callable[[Any], Pieces], sizes: Any, writer: Connection) -> None:
    try:
        for name, value in measure(sizes):
            writer.send(("piece", name, value))
        writer.send(("done", "", None))
    except BaseException:
        writer.send(("failed", "", traceback.format_exc()))
