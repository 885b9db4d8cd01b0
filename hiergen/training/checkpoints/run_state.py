"""The state of a run at one moment, saved and restored: weights, averages, optimizer moments, position. Nothing random."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

import hiergen
from hiergen.config import fingerprint, to_json, with_defaults
from hiergen.files import atomic_directory, flush, sole_writer, write_json
from hiergen.pipelines.card import TRAINING, keep_card, write_card
from hiergen.training.checkpoints.best import Best
from hiergen.training.checkpoints.checkpoint import (
    find_checkpoint,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    sweep,
)
from hiergen.training.config import TrainConfig
from hiergen.training.ema import Average
from hiergen.training.finetune.lora import save_plain
from hiergen.training.optim import learning_rate
from hiergen.training.processes.sharding import share_like, whole_on_main, whole_tensors
from hiergen.training.reporting.facts import training_facts
from hiergen.training.tasks.base import Task
from hiergen.training.validation import averaged

logger = logging.getLogger(__name__)

#: What may differ between the run that wrote a checkpoint and the one that resumes from it, beside `samples`, which moves its end.
MAY_CHANGE = (
    "out",
    "checkpoint_every",
    "keep_last",
    "background_checkpoints",
    "keep_best",
    "best_is",
    "log_every",
    "num_workers",
    "data_check",
    "max_skipped",
    "compile",
    "sharding",
    "activation_checkpointing",
    "peak_tflops",
    "trackers",
)


@dataclasses.dataclass
class RunState:
    """What changes while a run trains.

    Attributes:
        players: The modules that are trained, unwrapped.
        optimizers: The optimizer of each player.
        ema: Averaged weights of the first player's model, or None.
        skipped: Number of steps skipped because a gradient was not finite (a device scalar), see `hiergen.training.step`.
        samples_seen: Position in the run.
        best: The best moment so far, whose model is in `best/`.
    """

    players: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.AdamW]
    ema: Average | None
    skipped: Tensor
    samples_seen: int = 0
    best: Best | None = None


class RunKeeper:
    """Writes checkpoints of a `RunState` and restores the newest valid one.

    Args:
        config: The run.
        task: The task of the run.
        accelerator: Accelerate's object, which tells the processes apart.
    """

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator) -> None:
        self._config, self._task, self._accelerator = config, task, accelerator
        self._out = Path(config.out)
        #: The data check in use and the digests it gave; set by `restore`.
        self._content: dict[str, str] | None = None
        self._writer = ThreadPoolExecutor(1) if config.background_checkpoints else None
        #: The checkpoint that is being written in the background: its position, and what it comes to.
        self._pending: tuple[int, Future[Path]] | None = None

    @contextlib.contextmanager
    def sole_writer(self) -> Iterator[None]:
        """Inside, no other run may use the folder; the main process holds it, and all are told if it cannot.

        Raises:
            ValueError: If another run does.
        """
        problem = None
        with contextlib.ExitStack() as stack:
            if self._accelerator.is_main_process:
                try:
                    stack.enter_context(sole_writer(self._out))
                except ValueError as error:
                    problem = str(error)
            self._tell(problem, ValueError)
            yield

    def _tell(self, problem: str | None, kind: type[Exception]) -> None:
        """Raise what the main process found, on every process: the others would wait for it for ever."""
        said = [problem]
        if self._accelerator.num_processes > 1:
            broadcast_object_list(said)
        if said[0] is not None:
            raise kind(said[0])

    def save(self, state: RunState, *, is_best: bool = False) -> None:
        """Write a checkpoint from the main process, and first the model if it is the best; every process returns or raises together.

        Raises:
            OSError: If it, or the one before that was written in the background, could not be written; earlier ones are untouched.
        """
        # First the model: after a kill between the two, the resumed run finds the same best again.
        if is_best and state.best is not None:
            self.export(state, self._out / "best", dataclasses.asdict(state.best))
        tensors = self._tensors(state)

        def write() -> None:
            log = self._out / "log.jsonl"
            if log.is_file():
                # In a power cut a checkpoint must not outlive the lines that led to it.
                flush(log)
            commit = self._capture(state, tensors)
            if self._writer is None:
                commit()
            else:
                self._pending = (state.samples_seen, self._writer.submit(commit))

        self._together(write, state.samples_seen)

    def finish(self) -> None:
        """Wait for the checkpoint that is written in the background; every process returns or raises together.

        Raises:
            OSError: If it could not be written.
        """
        self._together(lambda: None, 0)

    def _together(self, write: Callable[[], None], samples_seen: int, what: str = "checkpoint") -> None:
        """Finish what is pending and then `write`, on the main process, and let all processes know of a failure."""
        problem = None
        if self._accelerator.is_main_process:
            place = f"{what} at {samples_seen}"
            try:
                if self._pending is not None:
                    at, pending = self._pending
                    place, self._pending = f"checkpoint at {at}", None
                    pending.result()
                place = f"{what} at {samples_seen}"
                write()
            except OSError as error:
                problem = f"the {place} samples was not written: {type(error).__name__}: {error}"
        self._tell(problem, OSError)

    def restore(self, state: RunState) -> list[str]:
        """Fill `state` from the newest valid checkpoint, if there is one, and return what is now different, as sentences.

        Raises:
            ValueError: If it belongs to a run of another configuration or on other data, or has seen more samples than are asked for.
        """
        self._content = self._look_at_data()
        if self._accelerator.is_main_process:
            sweep(self._out / "checkpoints")
        path = find_checkpoint(self._out / "checkpoints")
        if path is None:
            return []
        tensors, saved = load_checkpoint(path)
        self._check_identity(saved["identity"])
        notes = self._moved_end(saved["identity"]["samples"], saved["samples_seen"])
        for name, module in state.players.items():
            current = module.state_dict()
            module.load_state_dict({key: share_like(value, current.get(key)) for key, value in tensors[name].items()})
            restore_optimizer(state.optimizers[name], tensors[f"{name}.optimizer"])
        if state.ema is not None:
            # By name: a safetensors file has an order of its own.
            for (name, _), shadow in zip(self._task.model.named_parameters(), state.ema.shadow, strict=True):
                shadow.copy_(share_like(tensors["ema"][name], shadow))
            state.ema.updates = saved["ema_updates"]
        if saved["scaler"] is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])
        state.samples_seen = saved["samples_seen"]
        state.skipped.fill_(saved["skipped"])
        state.best = Best.restore(saved.get("best"), self._config)
        self._compare_versions(saved.get("versions", {}))
        return notes

    def export(self, state: RunState, folder: Path, note: dict[str, Any] | None = None) -> None:
        """Write the model, with averaged weights where there are any, by `save_pretrained`, from the main process.

        Every process returns or raises together. `note` goes beside the model as `best.json`.

        Raises:
            OSError: If it could not be written.
        """
        model, is_main = self._task.model, self._accelerator.is_main_process

        def write() -> None:
            with atomic_directory(folder) as temporary:
                keep_card(folder, temporary)
                if isinstance(model, ConfigMixin):
                    facts = training_facts(self._config, self._task, state.samples_seen)
                    model.register_to_config(**{TRAINING: dataclasses.asdict(facts)})
                    write_card(model, temporary)
                save_plain(model, temporary)
                if note is not None:
                    write_json(temporary / "best.json", note)

        with averaged(model, state.ema), whole_on_main(model, is_main=is_main):
            self._together(write, state.samples_seen, "model")

    def _tensors(self, state: RunState) -> dict[str, dict[str, Tensor]]:
        """Return the whole tensors of a checkpoint by file and name. Every process must ask; the main one gets them."""
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for name, module in state.players.items():
            tensors[name] = module.state_dict()
            tensors[f"{name}.optimizer"] = flatten_optimizer(state.optimizers[name])
        if state.ema is not None:
            names = [name for name, _ in self._task.model.named_parameters()]
            tensors["ema"] = dict(zip(names, state.ema.shadow, strict=True))
        is_main = self._accelerator.is_main_process
        return {stem: whole_tensors(group, is_main=is_main) for stem, group in tensors.items()}

    def _capture(self, state: RunState, tensors: dict[str, dict[str, Tensor]]) -> Callable[[], Path]:
        """Return a function that writes the state as it is now; in the background, later steps do not change what it writes."""
        if self._writer is not None:
            tensors = {
                stem: {name: value.detach().to("cpu", copy=True) for name, value in group.items()}
                for stem, group in tensors.items()
            }
        scaler = self._accelerator.scaler
        identity = self._identity()
        values = {
            "samples_seen": state.samples_seen,
            "ema_updates": state.ema.updates if state.ema is not None else 0,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "skipped": float(state.skipped),
            "best": None if state.best is None else dataclasses.asdict(state.best),
            "versions": _versions(),
            "identity": identity,
            "fingerprint": fingerprint(identity),
        }
        folder = self._out / "checkpoints"
        return functools.partial(save_checkpoint, folder, state.samples_seen, tensors, values, self._config.keep_last)

    def _identity(self) -> dict[str, Any]:
        kept = {k: v for k, v in to_json(self._config).items() if k not in MAY_CHANGE}
        return {**kept, "data": self._task.dataset.fingerprint, "content": self._content}

    def _look_at_data(self) -> dict[str, str] | None:
        """Return the check of the data and its digest, or None if the fingerprint of the data covers its content.

        Every process reads for itself: while one did, the others would wait in a call that gives up after ten minutes.
        """
        check = self._config.data_check
        digits = None if check == "none" else self._task.dataset.content(is_whole=check == "whole")
        return None if digits is None else {"check": check, "digits": digits}

    def _moved_end(self, before: int, seen: int) -> list[str]:
        """Return what it means that the run now ends at another number of samples, nothing if it does not."""
        config = self._config
        if before == config.samples:
            return []
        if config.num_steps * config.batch_size < seen:
            raise ValueError(
                f"samples is {config.samples:,}, but the run in {str(self._out)!r} has seen {seen:,}: give at least as many"
            )
        sizes = {"batch_size": config.batch_size}
        old, new = (learning_rate(config.optim, seen, samples=samples, **sizes) for samples in (before, config.samples))
        moved = f": the end of the learning rate's schedule moves there; at {seen:,} samples the rate is {new:.4g} where it was {old:.4g}"
        return [f"samples was {before:,}, is {config.samples:,}{moved if new != old else ''}"]

    def _check_identity(self, saved: dict[str, Any]) -> None:
        now = self._identity()
        saved = {k: v for k, v in with_defaults(saved, self._config).items() if k not in MAY_CHANGE}
        saved.pop("samples"), now.pop("samples")
        # Runs of earlier versions did not look at it.
        before, after = saved.pop("content", None), now.pop("content")
        changed = list(_differences(saved, now, ""))
        if before and after and before["check"] == after["check"]:
            if before != after and not changed:
                changed = ["the content of the data changed, under the same names and of the same size"]
        elif before and self._accelerator.is_main_process:
            logger.warning(
                "the content of the data is not compared: data_check was %r, is %r",
                before["check"],
                self._config.data_check,
            )
        if changed:
            raise ValueError(
                f"{str(self._out)!r} holds a run of another configuration: {'; '.join(changed)}. "
                f"Choose another --out, with --init {str(self._out)!r} to start a new run from its weights, or delete the folder to "
                f"start over. Of a run that goes on, these may change: samples, {', '.join(MAY_CHANGE[1:])}"
            )

    def _compare_versions(self, saved: dict[str, str]) -> None:
        changed = [
            f"{name} was {saved[name]}, is {now}" for name, now in _versions().items() if now != saved.get(name, now)
        ]
        if changed and self._accelerator.is_main_process:
            logger.warning(
                "the code has changed since the checkpoint was written (%s): the resumed run may differ from an uninterrupted one",
                "; ".join(changed),
            )


@functools.cache
def _versions() -> dict[str, str]:
    """Digests and versions of the code that a run depends on."""
    package = Path(hiergen.__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(package.rglob("*.py"))))
    return {"hiergen": digest.hexdigest()[:12], "torch": torch.__version__}


def _differences(saved: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            yield from _differences(saved.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif saved != now:
        yield f"{where} was {saved!r}, is {now!r}"
