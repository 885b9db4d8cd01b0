"""Long passes over many images in parts: each part leaves a file, so that a run can be stopped, continued and shared by processes.

Part k holds the items from k * part_size; process r of n computes the missing parts r, r + n, ... of the list. Nothing that is stored
depends on the number of processes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.environment import one_thread
from hiergen.evaluation.protocol import process_state
from hiergen.evaluation.settings import PassConfig
from hiergen.files import atomic_path, check_writable, write_json
from hiergen.telling import progress

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The results of a pass.

    Attributes:
        paths: Safetensors files of the parts, in order.
    """

    paths: tuple[Path, ...]

    def names(self) -> list[str]:
        """Return the names of the results that every part has."""
        with safe_open(self.paths[0], framework="pt") as file:
            return sorted(file.keys())

    def each(self, name: str) -> Iterator[Tensor]:
        """Yield one result part by part, so that not all of it must fit in memory. Parts without it are passed over."""
        for path in self.paths:
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118  (a safe_open is no dictionary)
                    yield file.get_tensor(name)

    def read(self, name: str) -> Tensor:
        """Return one result of all parts, concatenated."""
        return torch.cat(list(self.each(name)))


def run_parts(
    folder: str | Path,
    identity: dict[str, Any],
    num_items: int,
    compute: Callable[[range, Any], dict[str, Tensor]],
    *,
    passes: PassConfig,
    what: str,
    load: Callable[[range], Any] | None = None,
) -> Parts | None:
    """Compute all parts that are not there yet; return them on the main process, None on the others.

    Args:
        folder: Folder of the parts.
        identity: JSON values that all parts depend on; a folder with others is refused.
        num_items: Number of items in all.
        compute: Maps the indices of a batch, and what was loaded for them, to results with one row per item, on any device.
        passes: Sizes of batches and parts, and how many threads load.
        what: Caption of the progress bar.
        load: Loads a batch, in threads that run ahead of `compute` and across the borders of parts; None loads nothing. With
            `passes.exact` it must return a tensor.

    Raises:
        ValueError: If the folder holds parts of another evaluation, or cannot be written to.
    """
    state, root, size = process_state(), check_writable(folder), passes.whole(passes.part_size)
    if passes.exact:
        identity = {**identity, "exact": passes.exact}
    _claim(root, {**identity, "num_items": num_items, "part_size": size}, is_main=state.is_main_process)
    ranges = [range(start, min(start + size, num_items)) for start in range(0, num_items, size)]
    paths = [root / f"part-{index:05d}.safetensors" for index in range(len(ranges))]
    incomplete = [(path, items) for path, items in zip(paths, ranges, strict=True) if not is_complete(path)]
    # Nobody writes before all have seen what is missing, so they share it without a gap.
    state.wait_for_everyone()
    missing = incomplete[state.process_index :: state.num_processes]
    batch_size = passes.whole(passes.batch_size)
    keys = [part for _, items in missing for part in batches(items, batch_size)]
    loaded = prefetched(load or (lambda _: None), keys, workers=passes.workers if load else 0)
    done = num_items - sum(len(items) for _, items in incomplete)
    threads = one_thread() if passes.exact else contextlib.nullcontext()
    total = done + sum(len(items) for _, items in missing)
    shown = (
        progress(what, total, "item", done=done) if state.is_main_process else contextlib.nullcontext(lambda _: None)
    )
    with threads, shown as show:
        for path, items in missing:
            results = []
            for batch, (_, value) in zip(batches(items, batch_size), loaded, strict=False):
                results += [compute(group, part) for group, part in _groups(batch, value, passes.at_once)]
                done += len(batch)
                show(done)
            with atomic_path(path) as temporary:
                save_file({name: value.cpu().contiguous() for name, value in gather(results).items()}, temporary)
    state.wait_for_everyone()
    return Parts(tuple(paths)) if state.is_main_process else None


def _groups(batch: range, loaded: Any, size: int) -> Iterator[tuple[range, Any]]:
    """Yield the items that models take at once, with what was loaded for them."""
    groups = batches(batch, size)
    if len(groups) == 1 or loaded is None:
        yield from ((group, loaded) for group in groups)
    else:
        yield from zip(groups, loaded.split(size), strict=True)


def prefetched(load: Callable[[T], Any], keys: Sequence[T], *, workers: int) -> Iterator[tuple[T, Any]]:
    """Yield (key, load(key)) in order; so many threads load ahead while the caller works on what it has, 0 loads on demand."""
    if not workers:
        yield from ((key, load(key)) for key in keys)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        coming = collections.deque(pool.submit(load, key) for key in keys[:workers])
        for index, key in enumerate(keys):
            value = coming.popleft().result()
            if index + workers < len(keys):
                coming.append(pool.submit(load, keys[index + workers]))
            yield key, value


def batches(items: range, size: int) -> list[range]:
    """Return consecutive ranges of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def gather(results: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the results of some batches, concatenated by name on their device."""
    listed = list(results)
    return {name: torch.cat([result[name] for result in listed]) for name in listed[0]}


def refuse_others(folder: str | Path, known: dict[str, Any]) -> None:
    """Check that a folder of parts, if there is one, is of an evaluation with these entries; for what is known before all is.

    Raises:
        ValueError: If it is of another; the entries that differ are named.
    """
    file = Path(folder) / "identity.json"
    if file.is_file():
        found, wanted = json.loads(file.read_text())["of"], json.loads(json.dumps(known))
        _refuse(Path(folder), sorted(name for name in wanted if found.get(name) != wanted[name]))


def _refuse(root: Path, changed: list[str]) -> None:
    if changed:
        raise ValueError(
            f"{str(root)!r} holds the parts of another evaluation ({', '.join(changed)} differ); choose another --out or delete it"
        )


def _claim(root: Path, identity: dict[str, Any], *, is_main: bool) -> None:
    file, wanted = root / "identity.json", fingerprint(identity)
    if file.is_file():
        found = json.loads(file.read_text())
        if found["fingerprint"] != wanted:
            same = json.loads(json.dumps(identity))
            _refuse(root, sorted(k for k in {*found["of"], *same} if found["of"].get(k) != same.get(k)))
    elif is_main:
        write_json(file, {"fingerprint": wanted, "of": identity})


def is_complete(path: Path) -> bool:
    """Return whether a safetensors file is there and was not cut."""
    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False
