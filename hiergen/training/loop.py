"""The only training loop: step, report, evaluate, save, stop, in that order.

A killed run that is started again gives what the uninterrupted one would have given. Nothing random is carried along: the data order is a
function of the position, and every step reseeds from (seed, samples seen). A checkpoint holds weights, averages, optimizer moments and the
position.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hiergen.config import to_json
from hiergen.data.stream import SampleStream, explain_worker_death, stream_batches
from hiergen.files import check_writable, write_json
from hiergen.seeding import derive_seed
from hiergen.telling import say, waiting
from hiergen.training.checkpoints.best import check_best, improvement
from hiergen.training.checkpoints.run_state import RunKeeper, RunState
from hiergen.training.config import TrainConfig
from hiergen.training.ema import Average
from hiergen.training.finetune.lora import add_adapters
from hiergen.training.finetune.weights import copy_weights, load_source, take_sizes
from hiergen.training.processes.launch import is_split, make_accelerator, share_of_data
from hiergen.training.processes.sharding import beside_shares
from hiergen.training.processes.signals import GracefulStop
from hiergen.training.reporting.meters import Meter
from hiergen.training.reporting.progress import TrainProgress, describe_task
from hiergen.training.reporting.run_log import RunLog, choose_trackers
from hiergen.training.step import Stepper
from hiergen.training.tasks.base import Task
from hiergen.training.validation import averaged, validate


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        model_dir: Folder of the trained model (averaged weights where there are), written by `save_pretrained`.
        samples_seen: Samples seen in all, over all sessions of the run.
        log: Lines of the log: one dict for every `log_every` samples, and with held-out samples one for every `checkpoint_every`.
    """

    model_dir: Path
    samples_seen: int
    log: list[dict[str, float]]


class RunInterruptedError(RuntimeError):
    """The run was asked to stop and has saved; `signal_number` says by which signal."""

    def __init__(self, signal_number: int, samples_seen: int) -> None:
        by = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        super().__init__(f"stopped by {by} after {samples_seen:,} samples; run again to continue")
        self.signal_number = signal_number
        self.samples_seen = samples_seen


def fit(config: TrainConfig, *, title: str = "train", cpu: bool | None = None) -> FitResult:
    """Train until `config.samples` are seen, resuming from the newest valid checkpoint in `config.out`.

    Args:
        config: The run.
        title: Title of the progress bar.
        cpu: Force (True) or forbid (False) the CPU; None takes what Accelerate finds.

    Raises:
        RunInterruptedError: After SIGINT, SIGTERM or SIGUSR1, when the step is finished and saved.
        ValueError: If the folder holds a run of another configuration or is written to by another, if `init` or `lora` do not fit the
            model, or see `make_accelerator`.
        ImportError: If the package of a tracker is missing.
        OSError: If a checkpoint cannot be written, or a data worker died; earlier checkpoints are kept.
        FloatingPointError: If more than `max_skipped` steps had a non-finite gradient; or, when the model is saved, if more than half of the
            steps of the run were skipped.
    """
    return _Run(config, title, cpu).fit()


class _Run:
    def __init__(self, config: TrainConfig, title: str, cpu: bool | None) -> None:
        self.config, self.title = config, title
        self.out = check_writable(config.out)
        self.accelerator = make_accelerator(config, choose_trackers(config.trackers), cpu=cpu)
        torch.manual_seed(derive_seed(config.seed, "init"))
        self.notes: list[str] = []
        is_main = self.accelerator.is_main_process
        with waiting(f"{title}: reading data and making the model") if is_main else contextlib.nullcontext():
            self.task = self._build()
            # Now, because the parameters may be shared out over processes later.
            self.found = describe_task(self.task)
        config = self.config
        if (config.keep_best or "").startswith("val/") and self.task.validation is None:
            raise ValueError(
                f"keep_best is {config.keep_best!r}, but the task has no held-out samples: set its validation"
            )
        self.stepper = Stepper(config, self.task, self.accelerator)
        decay = config.ema_decay
        self.ema = None if decay is None else Average(self.task.model.parameters(), decay=decay)
        self.state = RunState(self.task.players, self.stepper.optimizers, self.ema, self.stepper.skipped)
        self.keeper = RunKeeper(config, self.task, self.accelerator)
        self.log = RunLog(config, self.accelerator)

    def _build(self) -> Task:
        """Return the task; with `init` its model has those sizes and weights, with `lora` adapters are what is trained."""
        config, fresh = self.config, set[str]()
        if config.init is None and getattr(config.task, "decoder", None) is not None:
            raise ValueError("task.decoder is set, but init is None: give --init, whose encoder stays as it is")
        source = None if config.init is None else load_source(config.init, config.task)
        if source is not None:
            self.config = dataclasses.replace(config, task=take_sizes(config.task, source))
        task = self.config.task.build()
        if source is not None:
            self.notes, fresh = copy_weights(task.model, source, init=str(config.init), may_differ=config.init_except)
        if config.lora.rank:
            add_adapters(task.model, config.lora, seed=config.seed, trained=fresh)
            task.unshardable = "lora.rank is given, and adapters are small"
        return task

    def fit(self) -> FitResult:
        with self.keeper.sole_writer():
            self._resume()
            start, end = self.state.samples_seen // self.config.batch_size, self.config.num_steps
            # A finished run must not draw, log or save again.
            if start < end:
                self._train(range(start, end))
            folder = self.out / "model"
            self.keeper.export(self.state, folder)
            self.accelerator.wait_for_everyone()
            # After the model is saved: its owner may still want to look at it.
            self.stepper.check_trained(end)
            return FitResult(folder, self.state.samples_seen, self.log.lines)

    def _resume(self) -> None:
        notes = self.keeper.restore(self.state)
        if self.state.samples_seen:
            # What happens every so many samples is seen by comparison with the step before.
            self.task.begin_step(self.state.samples_seen - self.config.batch_size)
        settings = to_json(self.config)
        self.log.open(self.state.samples_seen, settings)
        for note in notes if self.state.samples_seen else self.notes:
            self.log.note(note, self.state.samples_seen)
        if self.accelerator.is_main_process:
            write_json(self.out / "config.json", settings)
            seen = f", {self.state.samples_seen:,} of {self.config.samples:,} samples seen before"
            where = f"on {self.accelerator.num_processes} x {self.accelerator.device}".replace("on 1 x", "on")
            say(f"{self.title}: {self.found} {where} -> {self.out}{seen if self.state.samples_seen else ''}")
        self.accelerator.wait_for_everyone()

    def _train(self, steps: range) -> None:
        config, accelerator = self.config, self.accelerator
        rank, world = share_of_data(config, accelerator)
        stream = SampleStream(
            self.task.dataset,
            batch_size=config.batch_size,
            seed=config.seed,
            rank=rank,
            world_size=world,
            weights=self.task.weights,
        )
        with (
            contextlib.closing(self.log),
            explain_worker_death(),
            GracefulStop() as stop,
            TrainProgress(
                self.title, config.samples, not accelerator.is_main_process, done=self.state.samples_seen
            ) as progress,
        ):
            meter = Meter(config, accelerator.device, precision=accelerator.mixed_precision)
            batches = stream_batches(stream, steps, num_workers=config.num_workers)
            for step, batch in zip(steps, meter.timed(batches), strict=True):
                with meter.counting(self.stepper.active(self.state.samples_seen)):
                    terms = self._step(batch)
                meter.add(terms)
                self.state.samples_seen = (step + 1) * config.batch_size
                progress.advance(self.state.samples_seen)

                is_last = step == steps[-1]
                if is_last or self._passed(config.log_every):
                    self._report(meter, progress)
                signal_number = self._agree(stop.signal_number)
                is_due = is_last or self._passed(config.checkpoint_every)
                # A run that stops on request saves but does not evaluate: the uninterrupted one would not have.
                is_best = is_due and self._evaluate()
                if is_due or signal_number:
                    self._save(is_best=is_best)
                if is_last or signal_number:
                    self.keeper.finish()
                if signal_number and not is_last:
                    raise RunInterruptedError(signal_number, self.state.samples_seen)

    def _passed(self, every: int) -> bool:
        """Return whether the last step passed a multiple of `every` samples."""
        after = self.state.samples_seen
        return (after - self.config.batch_size) // every < after // every

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update every player and the averages once; return the logged terms, still on the device."""
        terms = self.stepper.take(batch, self.state.samples_seen)
        if self.ema is not None:
            with beside_shares(is_split(self.config, self.accelerator)):
                self.ema.step(self.task.model.parameters())
        return terms

    def _report(self, meter: Meter, progress: TrainProgress) -> None:
        """Write and show a line of the log; stop where too many steps were skipped."""
        state = self.state
        line = self.log.compose(meter, self.task, samples_seen=state.samples_seen, skipped=float(state.skipped))
        self.log.add(line)
        progress.show(line)
        self.stepper.check_skipped(line)

    def _agree(self, signal_number: int | None) -> int:
        """Return the signal that any process received, on all processes; 0 for none."""
        if self.accelerator.num_processes == 1:
            return signal_number or 0
        mine = torch.tensor([signal_number or 0], device=self.accelerator.device)
        return int(cast(Tensor, self.accelerator.gather(mine)).max())

    def _evaluate(self) -> bool:
        """Score held-out samples, and return whether the model is now better than it ever was."""
        config, state = self.config, self.state
        if self.task.validation is not None:
            scores = validate(
                self.task,
                state.ema,
                self.accelerator,
                seed=config.seed,
                player=self.stepper.first,
                share=share_of_data(config, self.accelerator),
            )
            self.log.add({"samples": float(state.samples_seen), **scores})
            if (config.keep_best or "").startswith("val/"):
                check_best(scores, config)
        since = (state.samples_seen - config.batch_size) // config.checkpoint_every * config.checkpoint_every
        found = improvement(config, self.log.lines, since=since, samples_seen=state.samples_seen, best=state.best)
        state.best = found or state.best
        return found is not None

    def _save(self, *, is_best: bool) -> None:
        """Hand pictures to the trackers, and write a checkpoint and the model if it is the best."""
        # Not `trackers`, which only the main process has.
        if self.accelerator.log_with:
            with averaged(self.task.model, self.ema, self.stepper.first):
                # Blocks that are split need all processes to run.
                draws = self.accelerator.is_main_process or is_split(self.config, self.accelerator)
                images = self.task.images() if draws else {}
            self.log.add_images(images, self.state.samples_seen)
        self.keeper.save(self.state, is_best=is_best)
