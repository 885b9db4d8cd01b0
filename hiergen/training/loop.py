"""The only training loop. A killed run that is started again gives what the uninterrupted one would have given.

Nothing random is carried along: the data order is a function of the position, and every step reseeds from (seed, samples seen).
What a checkpoint holds is weights, averages, optimizer moments and the position.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hiergen.config import to_json
from hiergen.data.stream import SampleStream, explain_worker_death, stream_batches
from hiergen.files import check_writable, write_json
from hiergen.seeding import derive_seed, make_rng
from hiergen.training.checkpoints.best import check_best, improvement
from hiergen.training.checkpoints.run_state import RunKeeper, RunState
from hiergen.training.config import TrainConfig
from hiergen.training.ema import Average
from hiergen.training.optim import learning_rate, make_optimizer
from hiergen.training.processes.launch import is_sharded, make_accelerator
from hiergen.training.processes.sharding import gathered, shard
from hiergen.training.processes.signals import GracefulStop
from hiergen.training.reporting.progress import TrainProgress
from hiergen.training.reporting.run_log import Clock, Meter, RunLog, choose_trackers, peak_memory
from hiergen.training.reporting.throughput import StepFlops, measure_peak
from hiergen.training.tasks.base import Task
from hiergen.training.update import Update, take_steps
from hiergen.training.validation import averaged, validate

_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        model_dir: Folder of the trained model (averaged weights where there are), written by `save_pretrained`.
        samples_seen: Samples seen in all, over all sessions of the run.
        log: Lines of the log: one dict a `log_every` samples, and with held-out samples one a `checkpoint_every`.
    """

    model_dir: Path
    samples_seen: int
    log: list[dict[str, float]]


class RunInterruptedError(RuntimeError):
    """The run was asked to stop and has saved; `signal_number` says by which signal."""

    def __init__(self, signal_number: int, samples_seen: int) -> None:
        super().__init__(f"stopped by signal {signal_number} after {samples_seen} samples; run again to continue")
        self.signal_number = signal_number
        self.samples_seen = samples_seen


class _PlayerLoss(nn.Module):
    """The forward pass of a player is its loss: so that wrappers (DDP, compile) see one forward call."""

    def __init__(self, task: Task, name: str) -> None:
        super().__init__()
        self.module = task.players[name]
        self._losses: Callable[..., dict[str, Tensor]] = lambda batch, rng: task.losses(name, batch, rng)

    def forward(self, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        return self._losses(batch, rng)


def fit(config: TrainConfig, *, title: str = "train", cpu: bool | None = None) -> FitResult:
    """Train until `config.samples` are seen, resuming from the newest valid checkpoint in `config.out`.

    Args:
        config: The run.
        title: Shown at the progress bar.
        cpu: Force (True) or forbid (False) the CPU; None takes what Accelerate finds.

    Raises:
        RunInterruptedError: After SIGINT, SIGTERM or SIGUSR1, when the step is finished and saved.
        ValueError: If the folder holds a run of another configuration or is written to by another, or see `make_accelerator`.
        ImportError: If the package of a tracker is missing.
        OSError: If a checkpoint cannot be written, or a data worker died; earlier checkpoints are kept.
        FloatingPointError: If more than `max_skipped` steps had a non-finite gradient.
    """
    return _Run(config, title, cpu).fit()


class _Run:
    def __init__(self, config: TrainConfig, title: str, cpu: bool | None) -> None:
        self.config = config
        self.title = title
        self.out = check_writable(config.out)
        self.accelerator = make_accelerator(config, choose_trackers(config.trackers), cpu=cpu)
        torch.manual_seed(derive_seed(config.seed, "init"))
        self.task = config.task.build()
        self.device = self.accelerator.device
        for module in self.task.players.values():
            module.train()
            if config.activation_checkpointing:
                _checkpoint_activations(module)
        if (config.keep_best or "").startswith("val/") and self.task.validation is None:
            raise ValueError(
                f"keep_best is {config.keep_best!r}, but the task has no held-out samples: set its validation"
            )
        self._is_sharded = is_sharded(config, self.accelerator)
        if self._is_sharded and self.task.unshardable is not None:
            raise ValueError(f"sharding is 'full', expected 'none' for this task: {self.task.unshardable}")
        self.losses = {name: self._wrap(_PlayerLoss(self.task, name)) for name in self.task.players}
        self.optimizers = {
            name: make_optimizer(module, self.task.optim(name) or config.optim)
            for name, module in self.task.players.items()
        }
        decay = config.ema_decay
        self.ema = None if decay is None else Average(self.task.model.parameters(), decay=decay)
        self.state = RunState(self.task.players, self.optimizers, self.ema, skipped=torch.zeros((), device=self.device))
        #: Samples seen before the last step that was skipped, on the device.
        self._last_bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self.keeper = RunKeeper(config, self.task, self.accelerator)
        self.log = RunLog(config, self.accelerator)
        self.flops: StepFlops | None = None
        if config.peak_tflops is not None:
            self.flops = StepFlops(is_compiled=config.compile)
            dtype = _DTYPES[config.precision]
            is_given = config.peak_tflops != "measure"
            self.peak = float(config.peak_tflops) if is_given else measure_peak(self.device, dtype)

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self.config.compile:
            module.compile()
        if not self._is_sharded:
            return cast(nn.Module, self.accelerator.prepare(module))
        # Half precision from Accelerate, and nothing else: not the wrapper of data parallelism, nor all of the model on the device at once.
        module = self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        shard(module, self.device)
        return module

    def fit(self) -> FitResult:
        with self.keeper.sole_writer():
            return self._fit()

    def _fit(self) -> FitResult:
        self._resume()
        config = self.config
        start = self.state.samples_seen // config.batch_size
        # A finished run must not draw, log or save again.
        if start < config.num_steps:
            with (
                contextlib.closing(self.log),
                explain_worker_death(),
                GracefulStop() as stop,
                TrainProgress(self.title, config.samples, self._is_quiet) as progress,
            ):
                self._train(range(start, config.num_steps), stop, progress)
        return FitResult(self._export(), self.state.samples_seen, self.log.lines)

    @property
    def _active(self) -> tuple[str, ...]:
        """The players that are updated at this position."""
        return tuple(name for name in self.losses if self.state.samples_seen >= self.task.start(name))

    @property
    def _first(self) -> nn.Module:
        """The player that the run is about, as it is trained."""
        return next(iter(self.losses.values()))

    @contextlib.contextmanager
    def _used_by(self, name: str) -> Iterator[None]:
        """Inside, the other players that a player's loss runs are whole, where parameters are shared out."""
        with contextlib.ExitStack() as stack:
            for other in self.task.uses(name) if self._is_sharded else ():
                stack.enter_context(gathered(self.losses[other]))
            yield

    @property
    def _is_quiet(self) -> bool:
        return not self.accelerator.is_main_process

    def _train(self, steps: range, stop: GracefulStop, progress: TrainProgress) -> None:
        config, world = self.config, self.accelerator.num_processes
        rank = self.accelerator.process_index
        stream = SampleStream(
            self.task.dataset, batch_size=config.batch_size, seed=config.seed, rank=rank, world_size=world
        )
        meter, clock = Meter(), Clock()
        batches = stream_batches(stream, steps, num_workers=config.num_workers)
        for step, batch in zip(steps, clock.timed(batches), strict=True):
            with self.flops.count(self._active) if self.flops else contextlib.nullcontext():
                terms = self._step(batch)
            meter.add(terms)
            before, self.state.samples_seen = self.state.samples_seen, (step + 1) * config.batch_size
            progress.advance(self.state.samples_seen)
            last = step == steps[-1]
            if last or _crossed(before, self.state.samples_seen, config.log_every):
                self._write_log(meter, clock, progress)
            wanted = self._agree(stop.signal_number)
            # Where it stops on request a run saves, but does not judge: the uninterrupted run would not have.
            is_best = (last or _crossed(before, self.state.samples_seen, config.checkpoint_every)) and self._judge(
                before
            )
            if last or wanted or _crossed(before, self.state.samples_seen, config.checkpoint_every):
                self.log.add_images(self._pictures(), self.state.samples_seen)
                self.keeper.save(self.state, is_best=is_best)
            if last or wanted:
                self.keeper.finish()
            if wanted and not last:
                raise RunInterruptedError(wanted, self.state.samples_seen)

    def _judge(self, before: int) -> bool:
        """Score held-out samples, and return whether the model is now better than it ever was."""
        config, state = self.config, self.state
        if self.task.validation is not None:
            scores = validate(self.task, state.ema, self.accelerator, seed=config.seed, player=self._first)
            self.log.add({"samples": float(state.samples_seen), **scores})
            if (config.keep_best or "").startswith("val/"):
                check_best(scores, config)
        since = before // config.checkpoint_every * config.checkpoint_every
        found = improvement(config, self.log.lines, since=since, samples_seen=state.samples_seen, best=state.best)
        state.best = found or state.best
        return found is not None

    def _pictures(self) -> dict[str, Tensor]:
        # Not `trackers`, which only the main process has.
        if not self.accelerator.log_with:
            return {}
        with averaged(self.task.model, self.ema, self._first):
            return self.task.images() if self.accelerator.is_main_process else {}

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update every player once; return the logged terms, still on the device."""
        config = self.config
        terms: dict[str, Tensor] = {}
        self.task.begin_step(self.state.samples_seen)
        active = self._active
        for name in active:
            rate = learning_rate(
                config, self.state.samples_seen, optim=self.task.optim(name), start=self.task.start(name)
            )
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate
        for micro, part in enumerate(_split(batch, config.accumulation)):
            is_last = micro == config.accumulation - 1
            rank = self.accelerator.process_index
            # Layers such as dropout draw from the global generator, the models' own draws from `rng`.
            torch.manual_seed(derive_seed(config.seed, "step", self.state.samples_seen, rank, micro))
            rng = make_rng(config.seed, "draws", self.state.samples_seen, rank, micro, device=self.device)
            part = {key: value.to(self.device, non_blocking=True) for key, value in part.items()}
            for name in active:
                loss = self.losses[name]
                is_synced = contextlib.nullcontext() if is_last else self.accelerator.no_sync(loss)
                with is_synced, _only(self.task, name), self._used_by(name):
                    result = loss(part, rng)
                    self.accelerator.backward(result["loss"] / config.accumulation)
                for key, value in result.items():
                    label = key if len(self.losses) == 1 else f"{name}/{key}"
                    terms[label] = (
                        terms.get(label, torch.zeros((), device=self.device)) + value.detach() / config.accumulation
                    )
        losses = [terms[name] for name in terms if name == "loss" or name.endswith("/loss")]
        for name, norm in self._update(active, losses).items():
            terms[f"{name}/grad_norm" if len(self.optimizers) > 1 else "grad_norm"] = norm
        if self.ema is not None:
            self.ema.step(self.task.model.parameters())
        return terms

    def _update(self, active: tuple[str, ...], losses: list[Tensor]) -> dict[str, Tensor]:
        """Take the players' steps, count what was skipped, and return the norms of their gradients."""
        config = self.config
        players = [
            Update(name, self.losses[name], self.optimizers[name], (self.task.optim(name) or config.optim).clip_norm)
            for name in active
        ]
        norms, is_skipped = take_steps(players, losses, self.accelerator)
        self.state.skipped += is_skipped
        self._last_bad = torch.where(is_skipped, self.state.samples_seen, self._last_bad)
        return norms

    def _write_log(self, meter: Meter, clock: Clock, progress: TrainProgress) -> None:
        config = self.config
        values = meter.means(self.accelerator)
        summary = self.task.summary(lambda x: cast(Tensor, self.accelerator.reduce(x, reduction="sum")))
        values |= {name: float(value) for name, value in summary.items()}
        samples = meter.steps * config.batch_size
        meter.reset()
        seconds, wait = clock.read()
        skipped = float(self.state.skipped)
        rate = learning_rate(config, self.state.samples_seen)
        line = {
            "samples": float(self.state.samples_seen),
            "lr": rate,
            **values,
            "samples_per_second": samples / seconds,
        }
        line |= {"data_wait": wait, "peak_memory_gib": peak_memory(self.device)}
        if self.flops is not None:
            reached = self.flops.read() / seconds / 1e12
            line |= {"tflops_per_second": reached, "mfu": reached / self.peak}
        if self.accelerator.scaler is not None:
            line["loss_scale"] = self.accelerator.scaler.get_scale()
        if skipped:
            line["skipped"] = skipped
        if config.keep_best is not None and not config.keep_best.startswith("val/") and not self.log.lines:
            check_best(values, config)
        self.log.add(line)
        progress.show(line)
        if skipped > config.max_skipped:
            bad = [key for key, value in values.items() if not abs(value) < float("inf")]
            raise FloatingPointError(
                f"{int(skipped)} steps had a non-finite gradient, at most {config.max_skipped} are tolerated; "
                f"not finite at {self.state.samples_seen} samples: {', '.join(bad) or 'nothing but gradients'}; "
                f"the last such batch began at sample {int(self._last_bad)}: {self._describe_batch(int(self._last_bad))}"
            )

    def _describe_batch(self, samples_seen: int) -> str:
        """Name the samples of a global batch by their places in the dataset."""
        config = self.config
        stream = SampleStream(self.task.dataset, batch_size=config.batch_size, seed=config.seed)
        pairs = stream.samples(samples_seen // config.batch_size)
        shown = ", ".join(str(index) for index, _ in pairs[:16])
        return f"samples {shown}{', ...' if len(pairs) > 16 else ''} of the dataset, epoch {pairs[0][1]}"

    def _agree(self, signal_number: int | None) -> int:
        """Return the signal that any process received, on all processes; 0 for none."""
        if self.accelerator.num_processes == 1:
            return signal_number or 0
        mine = torch.tensor([signal_number or 0], device=self.device)
        return int(cast(Tensor, self.accelerator.gather(mine)).max())

    def _resume(self) -> None:
        self.keeper.restore(self.state)
        if self.state.samples_seen:
            # What happens every so many samples is seen by comparison with the step before.
            self.task.begin_step(self.state.samples_seen - self.config.batch_size)
        settings = to_json(self.config)
        self.log.open(self.state.samples_seen, settings)
        if self.accelerator.is_main_process:
            write_json(self.out / "config.json", settings)
        self.accelerator.wait_for_everyone()

    def _export(self) -> Path:
        folder = self.out / "model"
        self.keeper.export(self.state, folder)
        self.accelerator.wait_for_everyone()
        return folder


@contextlib.contextmanager
def _only(task: Task, name: str) -> Iterator[None]:
    """Let gradients reach the parameters of one player alone."""
    frozen = [p for other, m in task.players.items() if other != name for p in m.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _checkpoint_activations(player: nn.Module) -> None:
    """Turn on diffusers' gradient checkpointing in every model of a player that has it."""
    for module in player.modules():
        if isinstance(module, ModelMixin) and module._supports_gradient_checkpointing:
            module.enable_gradient_checkpointing()


def _split(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(parts)]


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every < after // every
