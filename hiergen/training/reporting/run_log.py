"""The log of a run: means of terms, speed and memory, written as JSON lines and handed to trackers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from hiergen.files import write_text
from hiergen.training.config import TrainConfig

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Entries of a log line that depend on the machine and its load; all others are the same in every repetition of a run.
MEASURED = ("samples_per_second", "data_wait", "peak_memory_gib", "tflops_per_second", "mfu")
#: A loss this many times its smallest mean so far is warned of.
DIVERGENCE = 10.0
#: A codebook is warned of when a level chose less than this share of the codes that it could have chosen (its vocabulary, or one code
#: an id if those were fewer) in so many lines of the log running. Chance alone would choose 63 % or more.
COLLAPSE_SHARE, COLLAPSE_LINES = 0.01, 3


class Meter:
    """Means of logged terms, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        # Terms that begin later, or come now and then, are means over the steps that had them.
        self._counts: dict[str, int] = {}
        self.steps = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()
            self._counts[name] = self._counts.get(name, 0) + 1
        self.steps += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        stacked = torch.stack([value / self._counts[name] for name, value in self._sums.items()])
        reduced = cast(Tensor, accelerator.reduce(stacked, reduction="mean"))
        return dict(zip(self._sums, reduced.tolist(), strict=True))


class Clock:
    """Time since the last line of the log, and which share of it the loop waited for data."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), 0.0

    def timed(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield `batches`, counting the time that each takes to come."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield batch

    def read(self) -> tuple[float, float]:
        """Return (seconds, share of waiting in [0, 1]) since the last call, and start anew."""
        now = time.perf_counter()
        seconds, waited = now - self._started, self._waited
        self._started, self._waited = now, 0.0
        return seconds, waited / seconds


class RunLog:
    """The lines of a run: kept, appended to `log.jsonl`, and handed to trackers by the main process.

    Args:
        config: The run.
        accelerator: Holds the trackers.

    Raises:
        ImportError: If the package of a tracker is not installed.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self._path = Path(config.out) / "log.jsonl"
        self._config, self._accelerator = config, accelerator
        self._lowest = math.inf
        self.lines: list[dict[str, float]] = []

    def open(self, samples_seen: int, settings: dict[str, Any]) -> None:
        """Keep the lines up to a position (what came after it will be trained again) and start the trackers."""
        if self._path.is_file():
            lines = [json.loads(line) for line in self._path.read_text().splitlines() if line.endswith("}")]
            self.lines = [line for line in lines if line["samples"] <= samples_seen]
            if self._accelerator.is_main_process:
                # A run that is killed here must find all of its lines again.
                write_text(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))
        for line in self.lines:
            self._lowest = min(self._lowest, _main_loss(line))
        if self._accelerator.log_with:
            flat = {
                "samples": self._config.samples,
                "batch_size": self._config.batch_size,
                "settings": json.dumps(settings),
            }
            self._accelerator.init_trackers(self._path.parent.resolve().name, config=flat)

    def add(self, line: dict[str, float]) -> None:
        """Write one line; warn where the loss has grown to `DIVERGENCE` times its smallest, or a codebook has collapsed.

        Raises:
            OSError: If it cannot be written.
        """
        self.lines.append(line)
        if self._accelerator.is_main_process:
            self._warn(line)
        self._lowest = min(self._lowest, _main_loss(line))
        if self._accelerator.is_main_process:
            # JSON has no NaN: a loss that is not finite is logged as null.
            finite = {k: v if abs(v) < float("inf") else None for k, v in line.items()}
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(finite) + "\n")
            except OSError as error:
                raise OSError(
                    f"the log at {int(line['samples'])} samples was not written: {type(error).__name__}: {error}"
                ) from error
        if self._accelerator.trackers:
            self._accelerator.log(line, step=int(line["samples"]))

    def _warn(self, line: dict[str, float]) -> None:
        loss = _main_loss(line)
        if math.isfinite(loss) and 0 < self._lowest * DIVERGENCE < loss:
            logger.warning(
                "the loss is %.4g at %d samples, more than %g times its smallest, %.4g: the run may be diverging",
                loss, int(line["samples"]), DIVERGENCE, self._lowest,
            )  # fmt: skip
        for name, share in line.items():
            if not name.startswith("reach_"):
                continue
            shares = [float(entry[name]) for entry in self.lines if name in entry]
            was_low = [value < COLLAPSE_SHARE for value in shares[-COLLAPSE_LINES - 1 :]]
            # Once for each time that it collapses: not again while it stays so.
            if all(was_low[-COLLAPSE_LINES:]) and was_low.count(True) == COLLAPSE_LINES:
                logger.warning(
                    "level %s chose %.2g of the codes that it could have chosen at %d samples, below %g in %d lines of the log "
                    "running: its codebook has collapsed (see codebook.revive_after and the entropy term)",
                    name.removeprefix("reach_"), share, int(line["samples"]), COLLAPSE_SHARE, COLLAPSE_LINES,
                )  # fmt: skip

    def add_images(self, images: dict[str, Tensor], samples_seen: int) -> None:
        """Hand pictures (b, 3, h, w) in [-1, 1] to the trackers that take images."""
        arrays = {
            name: ((value.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            for name, value in images.items()
        }
        for tracker in self._accelerator.trackers:
            # TensorBoard takes channels first unless it is told; the others take pictures as they are in files.
            order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images(arrays, step=samples_seen, **order)
            elif tracker.name == "trackio":
                # Accelerate hands it numbers alone.
                picture = importlib.import_module("trackio").Image
                named = {f"{name}/{k}": picture(x) for name, batch in arrays.items() for k, x in enumerate(batch)}
                tracker.log(named, step=samples_seen)

    def close(self) -> None:
        """Flush the trackers."""
        # Not by `end_training`, which also ends the group of processes, and the model is yet to be written.
        for tracker in self._accelerator.trackers:
            tracker.finish()


def choose_trackers(names: Iterable[str] | None) -> list[str]:
    """Return the trackers of a run: those that are named, or, for None, TensorBoard where it is installed.

    Raises:
        ImportError: If the package of a named one is missing; it says what to install.
    """
    if names is None:
        return ["tensorboard"] if _is_installed("tensorboard") else []
    for name in names:
        if not _is_installed(name):
            raise ImportError(f"trackers holds {name!r}, whose package is not installed: pip install {name}")
    return list(names)


def _is_installed(tracker: str) -> bool:
    packages = ("tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,)
    return any(importlib.util.find_spec(package) for package in packages)


def peak_memory(device: torch.device) -> float:
    """Return the most memory of this process so far, in GiB: allocated on the GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _main_loss(line: dict[str, Any]) -> float:
    """The loss of the player that the run is about: the first loss of a line; infinity where there is none."""
    names = (name for name in line if (name == "loss" or name.endswith("/loss")) and not name.startswith("val/"))
    found = next((line[name] for name in names), None)
    return math.inf if found is None else float(found)
