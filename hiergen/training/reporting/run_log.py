"""The log of a run: means of terms, speed and memory, written as JSON lines and handed to trackers."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from accelerate import Accelerator
from torch import Tensor

from hiergen.files import write_text
from hiergen.training.checkpoints.best import check_best
from hiergen.training.config import TrainConfig
from hiergen.training.optim import learning_rate
from hiergen.training.reporting.meters import Meter
from hiergen.training.tasks.base import Task

logger = logging.getLogger(__name__)

#: Entries of a log line that depend on the machine and its load; all others are the same in every repetition of a run.
MEASURED = ("samples_per_second", "data_wait", "peak_memory_gib", "tflops_per_second", "mfu")
#: A loss this many times its smallest mean so far is warned of.
DIVERGENCE = 10.0
#: A codebook is warned of when a level chose less than this share of the codes that it could have chosen (its vocabulary, or the number
#: of ids if that was smaller) in so many lines of the log running. Chance alone would choose 63 % or more.
COLLAPSE_SHARE, COLLAPSE_LINES = 0.01, 3


class RunLog:
    """The lines of a run: kept, appended to `log.jsonl`, and handed to trackers by the main process.

    Args:
        config: The run.
        accelerator: Accelerate's object, which holds the trackers.

    Raises:
        ImportError: If the package of a tracker is not installed.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self._path = Path(config.out) / "log.jsonl"
        self._config, self._accelerator = config, accelerator
        self._lowest = math.inf
        self.lines: list[dict[str, float]] = []

    def open(self, samples_seen: int, settings: dict[str, Any]) -> None:
        """Keep the lines up to a position (later ones will be written again) and start the trackers."""
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

    def note(self, text: str, samples_seen: int) -> None:
        """Print what happened to the run at a position, and add it to `history.jsonl`; the main process does."""
        if self._accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)
            with open(self._path.with_name("history.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps({"samples": samples_seen, "note": text}) + "\n")

    def compose(self, meter: Meter, task: Task, *, samples_seen: int, skipped: float) -> dict[str, float]:
        """Return the line of this moment: the task's summary joins what was measured. Every process must ask, and gets the same means.

        Raises:
            ValueError: If this is the first line and lacks the entry by which the best model is kept.
        """
        config, accelerator = self._config, self._accelerator
        terms = meter.means(accelerator)
        summary = task.summary(lambda x: cast(Tensor, accelerator.reduce(x, reduction="sum")))
        terms |= {name: float(value) for name, value in summary.items()}
        if config.keep_best is not None and not config.keep_best.startswith("val/") and not self.lines:
            check_best(terms, config)
        rate = learning_rate(config.optim, samples_seen, batch_size=config.batch_size, samples=config.samples)
        line = {"samples": float(samples_seen), "lr": rate, **terms, **meter.speed()}
        if accelerator.scaler is not None:
            line["loss_scale"] = accelerator.scaler.get_scale()
        return {**line, "skipped": skipped} if skipped else line

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


def _main_loss(line: dict[str, Any]) -> float:
    """The loss of the player that the run is about: the first loss of a line; infinity where there is none."""
    names = (name for name in line if (name == "loss" or name.endswith("/loss")) and not name.startswith("val/"))
    found = next((line[name] for name in names), None)
    return math.inf if found is None else float(found)
