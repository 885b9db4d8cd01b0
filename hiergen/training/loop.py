"""The only training loop. A killed run that is started again gives what the uninterrupted one would have given.

Nothing random is carried along: the data order is a function of the position, and every step reseeds from (seed, samples seen).
What a checkpoint holds is weights, averages, optimizer moments and the position.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from hiergen.config import fingerprint, to_json
from hiergen.data.stream import SampleStream, stream_loader
from hiergen.files import atomic_directory, check_writable, write_json
from hiergen.seeding import derive_seed, make_rng
from hiergen.training.checkpoint import (
    find_checkpoint,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from hiergen.training.config import TrainConfig
from hiergen.training.optim import learning_rate, make_optimizer
from hiergen.training.progress import TrainProgress
from hiergen.training.signals import GracefulStop
from hiergen.training.task import Task

logger = logging.getLogger(__name__)

#: What may differ between the run that wrote a checkpoint and the one that resumes from it.
_MAY_CHANGE = ("out", "checkpoint_every", "keep_last", "log_every", "num_workers", "max_skipped", "compile")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a run came to.

    Attributes:
        model_dir: Folder of the trained model (averaged weights where there are), written by `save_pretrained`.
        samples_seen: Samples seen in all, over all sessions of the run.
        log: Lines of the log: one dict a `log_every` samples.
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
        ValueError: If the folder holds a run of another configuration.
        FloatingPointError: If more than `max_skipped` steps had a non-finite gradient.
    """
    return _Run(config, title, cpu).fit()


class _Run:
    def __init__(self, config: TrainConfig, title: str, cpu: bool | None) -> None:
        self.config = config
        self.title = title
        self.out = check_writable(config.out)
        mixed = None if config.precision == "no" else config.precision
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=bool(cpu), step_scheduler_with_optimizer=False)
        torch.manual_seed(derive_seed(config.seed, "init"))
        self.task = config.task.build()
        self.device = self.accelerator.device
        for module in self.task.players.values():
            module.train()
        self.losses = {name: self._wrap(_PlayerLoss(self.task, name)) for name in self.task.players}
        self.optimizers = {
            name: self.accelerator.prepare(make_optimizer(module, self.task.optim(name) or config.optim))
            for name, module in self.task.players.items()
        }
        self.ema = self._make_ema()
        self.samples_seen = 0
        self.log: list[dict[str, float]] = []
        self.skipped = torch.zeros((), device=self.device)

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self.config.compile:
            module.compile()
        return cast(nn.Module, self.accelerator.prepare(module))

    def _make_ema(self) -> EMAModel | None:
        if self.config.ema_decay is None:
            return None
        parameters = list(self.task.model.parameters())
        return EMAModel(parameters, decay=self.config.ema_decay, foreach=True)

    def fit(self) -> FitResult:
        self._resume()
        config = self.config
        start = self.samples_seen // config.batch_size
        # A finished run must not draw, log or save again.
        if start < config.num_steps:
            with GracefulStop() as stop, TrainProgress(self.title, config.samples, self._is_quiet) as progress:
                self._train(range(start, config.num_steps), stop, progress)
        return FitResult(self._export(), self.samples_seen, self.log)

    @property
    def _is_quiet(self) -> bool:
        return not self.accelerator.is_main_process

    def _train(self, steps: range, stop: GracefulStop, progress: TrainProgress) -> None:
        config, world = self.config, self.accelerator.num_processes
        rank = self.accelerator.process_index
        stream = SampleStream(
            self.task.dataset, batch_size=config.batch_size, seed=config.seed, rank=rank, world_size=world
        )
        meter = _Meter()
        started = time.perf_counter()
        for step, batch in zip(steps, stream_loader(stream, steps, num_workers=config.num_workers), strict=True):
            meter.add(self._step(batch))
            before, self.samples_seen = self.samples_seen, (step + 1) * config.batch_size
            progress.advance(self.samples_seen)
            last = step == steps[-1]
            if last or _crossed(before, self.samples_seen, config.log_every):
                seconds, started = time.perf_counter() - started, time.perf_counter()
                self._write_log(meter, seconds, progress)
            wanted = self._agree(stop.signal_number)
            if last or wanted or _crossed(before, self.samples_seen, config.checkpoint_every):
                self._save()
            if wanted and not last:
                raise RunInterruptedError(wanted, self.samples_seen)

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Update every player once; return the logged terms, still on the device."""
        config = self.config
        terms: dict[str, Tensor] = {}
        self.task.begin_step(self.samples_seen)
        active = [name for name in self.losses if self.samples_seen >= self.task.start(name)]
        for name in active:
            rate = learning_rate(config, self.samples_seen, optim=self.task.optim(name), start=self.task.start(name))
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate
        for micro, part in enumerate(_split(batch, config.accumulation)):
            is_last = micro == config.accumulation - 1
            rank = self.accelerator.process_index
            # Layers such as dropout draw from the global generator, the models' own draws from `rng`.
            torch.manual_seed(derive_seed(config.seed, "step", self.samples_seen, rank, micro))
            rng = make_rng(config.seed, "draws", self.samples_seen, rank, micro, device=self.device)
            part = {key: value.to(self.device, non_blocking=True) for key, value in part.items()}
            for name in active:
                loss = self.losses[name]
                with contextlib.nullcontext() if is_last else self.accelerator.no_sync(loss), _only(self.task, name):
                    result = loss(part, rng)
                    self.accelerator.backward(result["loss"] / config.accumulation)
                for key, value in result.items():
                    label = key if len(self.losses) == 1 else f"{name}/{key}"
                    terms[label] = (
                        terms.get(label, torch.zeros((), device=self.device)) + value.detach() / config.accumulation
                    )
        for name in active:
            label = f"{name}/grad_norm" if len(self.optimizers) > 1 else "grad_norm"
            terms[label] = self._update(name, self.optimizers[name])
        if self.ema is not None:
            self.ema.step(self.task.model.parameters())
        return terms

    def _update(self, name: str, optimizer: Any) -> Tensor:
        limit = (self.task.optim(name) or self.config.optim).clip_norm
        parameters = [p for p in self.losses[name].parameters() if p.grad is not None]
        norm = self.accelerator.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        norm = torch.as_tensor(norm, device=self.device).detach()
        bad = (~torch.isfinite(norm)).float()
        if self.accelerator.scaler is None:
            # The fused optimizer leaves weights and moments alone where this is 1.
            inner = optimizer.optimizer
            inner.found_inf, inner.grad_scale = bad, None
        self.skipped += bad
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _write_log(self, meter: _Meter, seconds: float, progress: TrainProgress) -> None:
        values = meter.means(self.accelerator)
        summary = self.task.summary(lambda x: cast(Tensor, self.accelerator.reduce(x, reduction="sum")))
        values |= {name: float(value) for name, value in summary.items()}
        samples = meter.steps * self.config.batch_size
        meter.reset()
        skipped = float(self.accelerator.reduce(self.skipped, reduction="max"))
        rate = learning_rate(self.config, self.samples_seen)
        line = {"samples": float(self.samples_seen), "lr": rate, **values, "samples_per_second": samples / seconds}
        if skipped:
            line["skipped"] = skipped
        self.log.append(line)
        progress.show(line)
        if self.accelerator.is_main_process:
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                # JSON has no NaN: a loss that is not finite is logged as null.
                finite = {k: v if abs(v) < float("inf") else None for k, v in line.items()}
                file.write(json.dumps(finite) + "\n")
        if skipped > self.config.max_skipped:
            bad = [key for key, value in values.items() if not abs(value) < float("inf")]
            raise FloatingPointError(
                f"{int(skipped)} steps had a non-finite gradient, at most {self.config.max_skipped} are tolerated; "
                f"not finite at {self.samples_seen} samples: {', '.join(bad) or 'nothing but gradients'}"
            )

    def _agree(self, signal_number: int | None) -> int:
        """Return the signal that any process received, on all processes; 0 for none."""
        if self.accelerator.num_processes == 1:
            return signal_number or 0
        mine = torch.tensor([signal_number or 0], device=self.device)
        return int(cast(Tensor, self.accelerator.gather(mine)).max())

    def _identity(self) -> dict[str, Any]:
        kept = {k: v for k, v in to_json(self.config).items() if k not in _MAY_CHANGE}
        return {**kept, "data": self.task.dataset.fingerprint}

    def _save(self) -> None:
        problem: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                self._save_here()
            except OSError as error:
                problem = [f"{type(error).__name__}: {error}"]
        # Every process must learn of a failure, or the others wait for this one for ever.
        if self.accelerator.num_processes > 1:
            broadcast_object_list(problem)
        if problem[0] is not None:
            raise OSError(f"the checkpoint at {self.samples_seen} samples was not written: {problem[0]}")

    def _save_here(self) -> None:
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, module in self.task.players.items():
            tensors[name] = dict(module.state_dict())
            tensors[f"{name}.optimizer"] = flatten_optimizer(self.optimizers[name].optimizer)
        if self.ema is not None:
            names = [name for name, _ in self.task.model.named_parameters()]
            tensors["ema"] = dict(zip(names, self.ema.shadow_params, strict=True))
        scaler = self.accelerator.scaler
        state = {
            "samples_seen": self.samples_seen,
            "ema_updates": self.ema.optimization_step if self.ema is not None else 0,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "skipped": float(self.skipped),
            "identity": self._identity(),
            "fingerprint": fingerprint(self._identity()),
        }
        save_checkpoint(self.out / "checkpoints", self.samples_seen, tensors, state, self.config.keep_last)

    def _resume(self) -> None:
        path = find_checkpoint(self.out / "checkpoints")
        if path is not None:
            tensors, state = load_checkpoint(path)
            self._check_identity(state["identity"])
            for name, module in self.task.players.items():
                module.load_state_dict(tensors[name])
                restore_optimizer(self.optimizers[name].optimizer, tensors[f"{name}.optimizer"])
            if self.ema is not None:
                # By name: a safetensors file has an order of its own.
                for (name, _), shadow in zip(self.task.model.named_parameters(), self.ema.shadow_params, strict=True):
                    shadow.copy_(tensors["ema"][name])
                self.ema.optimization_step = state["ema_updates"]
            if state["scaler"] is not None and self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.samples_seen = state["samples_seen"]
            self.skipped.fill_(state["skipped"])
        self._read_log()
        if self.accelerator.is_main_process:
            write_json(self.out / "config.json", to_json(self.config))
        if self.ema is not None:
            self.ema.to(self.device)
        self.accelerator.wait_for_everyone()

    def _check_identity(self, saved: dict[str, Any]) -> None:
        now = self._identity()
        changed = list(_differences(saved, now, ""))
        if changed:
            raise ValueError(
                f"{str(self.out)!r} holds a run of another configuration: {'; '.join(changed)}. "
                "Choose another --out, or delete the folder to start over"
            )

    def _read_log(self) -> None:
        """Keep the lines up to the checkpoint: what came after it will be trained again."""
        path = self.out / "log.jsonl"
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            self.log = [line for line in lines if line["samples"] <= self.samples_seen]
            if self.accelerator.is_main_process:
                path.write_text("".join(json.dumps(line) + "\n" for line in self.log))

    def _export(self) -> Path:
        folder = self.out / "model"
        model = self.task.model
        if self.accelerator.is_main_process:
            if self.ema is not None:
                self.ema.store(model.parameters())
                self.ema.copy_to(model.parameters())
            model.eval()
            with atomic_directory(folder) as temporary:
                model.save_pretrained(temporary)
            if self.ema is not None:
                self.ema.restore(model.parameters())
        self.accelerator.wait_for_everyone()
        return folder


class _Meter:
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


def _split(batch: dict[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    chunks = {key: value.chunk(parts) for key, value in batch.items()}
    return [{key: chunk[i] for key, chunk in chunks.items()} for i in range(parts)]


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every < after // every


def _differences(saved: Any, now: Any, where: str) -> Iterator[str]:
    if isinstance(saved, dict) and isinstance(now, dict):
        for key in sorted({*saved, *now}):
            yield from _differences(saved.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif saved != now:
        yield f"{where} was {saved!r}, is {now!r}"
