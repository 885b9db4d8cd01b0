"""One optimizer step: every player's loss and gradient, then the updates, where gradients that are not finite are skipped and counted.

Nothing here waits for the device, except `Stepper.check_skipped`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from accelerate import Accelerator
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hiergen.data.stream import SampleStream
from hiergen.seeding import derive_seed, make_rng
from hiergen.training.config import TrainConfig
from hiergen.training.optim import learning_rate, make_optimizer
from hiergen.training.processes.launch import is_sharded, is_split, share_of_data
from hiergen.training.processes.sharding import beside_shares, gathered, shard, split, whole
from hiergen.training.tasks.base import Task


class PlayerLoss(nn.Module):
    """The forward pass of a player is its loss: so that wrappers (DDP, compile) see one forward call."""

    def __init__(self, task: Task, name: str) -> None:
        super().__init__()
        self.module = task.players[name]
        self._losses: Callable[..., dict[str, Tensor]] = lambda batch, rng: task.losses(name, batch, rng)

    def forward(self, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        return self._losses(batch, rng)


class Stepper:
    """Takes the steps of a run: wraps the players for their processes, and updates them all on one batch at a time.

    Args:
        config: The run.
        task: The task, whose players lie on the CPU and start equal on all processes.
        accelerator: The processes that take part.

    Raises:
        ValueError: If parameters are to be shared out and the task or the launcher does not allow it.

    Attributes:
        losses: A module for each player, whose forward pass is the player's loss.
        optimizers: The optimizer of each player.
        skipped: Number of steps skipped because a gradient was not finite (a device scalar). Overflows that only lower the fp16 loss
            scale are not counted.
    """

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator) -> None:
        self._config, self._task, self._accelerator = config, task, accelerator
        self._device = accelerator.device
        for module in task.players.values():
            module.train()
            if config.activation_checkpointing:
                _checkpoint_activations(module)
        self._is_sharded = is_sharded(config, accelerator)
        self._is_split = is_split(config, accelerator)
        self._optim = {name: task.optim(name) or config.optim for name in task.players}
        asked = "tensor" if self._is_split else "full"
        if (self._is_sharded or self._is_split) and task.unshardable is not None:
            raise ValueError(f"sharding is {asked!r}, expected 'none' for this task: {task.unshardable}")
        if (self._is_sharded or self._is_split) and any(optim.name == "muon" for optim in self._optim.values()):
            raise ValueError(
                f"sharding is {asked!r}, expected 'none' with optim.name 'muon', which reads whole matrices"
            )
        self.losses = {name: self._wrap(PlayerLoss(task, name)) for name in task.players}
        self.optimizers = {
            name: make_optimizer(module, self._optim[name], multipliers=task.rate_multipliers(name))
            for name, module in task.players.items()
        }
        self.skipped = torch.zeros((), device=self._device)
        #: Samples seen before the last step that was skipped, on the device.
        self._last_bad = torch.zeros((), dtype=torch.int64, device=self._device)

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self._config.compile:
            module.compile()
        if not (self._is_sharded or self._is_split):
            return cast(nn.Module, self._accelerator.prepare(module))
        # Half precision from Accelerate, and nothing else: not the wrapper of data parallelism, nor all of the model on the device at once.
        module = self._accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        (split if self._is_split else shard)(module, self._device)
        return module

    @property
    def first(self) -> nn.Module:
        """The player that the run is about, as it is trained."""
        return next(iter(self.losses.values()))

    def active(self, samples_seen: int) -> tuple[str, ...]:
        """Return the players that are updated at a position."""
        return tuple(name for name in self.losses if samples_seen >= self._task.start(name))

    def take(self, batch: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Update every active player once; return the logged terms, still on the device."""
        config, task = self._config, self._task
        task.begin_step(samples_seen)
        active = self.active(samples_seen)
        sizes = {"batch_size": config.batch_size, "samples": config.samples}
        for name in active:
            rate = learning_rate(self._optim[name], samples_seen, start=task.start(name), **sizes)
            for group in self.optimizers[name].param_groups:
                group["lr"] = rate * group.get("multiplier", 1.0)
        terms: dict[str, Tensor] = {}
        rank, _ = share_of_data(config, self._accelerator)
        for micro, part in enumerate(_split(batch, config.accumulation)):
            # Layers such as dropout draw from the global generator, the models' own draws from `rng`.
            torch.manual_seed(derive_seed(config.seed, "step", samples_seen, rank, micro))
            rng = make_rng(config.seed, "draws", samples_seen, rank, micro, device=self._device)
            part = {key: value.to(self._device, non_blocking=True) for key, value in part.items()}
            for name in active:
                result = self._backward(name, part, rng, is_last=micro == config.accumulation - 1)
                for key, value in result.items():
                    label = key if len(self.losses) == 1 else f"{name}/{key}"
                    zero = torch.zeros((), device=self._device)
                    terms[label] = terms.get(label, zero) + value.detach() / config.accumulation
        with beside_shares(self._is_split):
            return terms | self._update(active, terms, samples_seen)

    def _backward(
        self, name: str, part: dict[str, Tensor], rng: torch.Generator, *, is_last: bool
    ) -> dict[str, Tensor]:
        """Add a player's gradient of one part of a batch, and return its losses."""
        loss = self.losses[name]
        is_synced = contextlib.nullcontext() if is_last else self._accelerator.no_sync(loss)
        with is_synced, _only(self._task, name), self._used_by(name):
            result: dict[str, Tensor] = loss(part, rng)
            self._accelerator.backward(result["loss"] / self._config.accumulation)
        return result

    @contextlib.contextmanager
    def _used_by(self, name: str) -> Iterator[None]:
        """Inside, the other players that a player's loss runs are whole, where parameters are shared out."""
        with contextlib.ExitStack() as stack:
            for other in self._task.uses(name) if self._is_sharded else ():
                stack.enter_context(gathered(self.losses[other]))
            yield

    def _update(self, active: tuple[str, ...], terms: dict[str, Tensor], samples_seen: int) -> dict[str, Tensor]:
        """Take the step of each active player whose gradient is finite, count what is skipped, and return the norms before clipping."""
        scaler = self._accelerator.scaler
        norms = {}
        for name in active:
            # All players' before any step, which may change the scale: Accelerate's own clipping would divide the second one's twice.
            if scaler is not None:
                scaler.unscale_(self.optimizers[name])
            parameters = [p for p in self.losses[name].parameters() if p.grad is not None]
            limit = self._optim[name].clip_norm
            norm = nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
            label = f"{name}/grad_norm" if len(self.losses) > 1 else "grad_norm"
            norms[label] = whole(torch.as_tensor(norm, device=self._device).detach())
        bad = ~torch.isfinite(torch.stack(list(norms.values())))
        for name, is_bad in zip(active, bad, strict=True):
            optimizer = self.optimizers[name]
            if scaler is None:
                # A fused optimizer leaves weights and moments alone where this is 1.
                optimizer.found_inf, optimizer.grad_scale = is_bad.float(), None  # type: ignore[attr-defined]
                optimizer.step()
            else:
                scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        is_skipped = bad.any()
        if scaler is not None:
            # That a scaler finds its scale by steps that it skips is no fault, so long as losses are finite and the scale can be lowered.
            losses = [terms[name] for name in terms if name == "loss" or name.endswith("/loss")]
            is_lost = (~torch.isfinite(torch.stack(losses))).any().float()
            is_least = scaler.scale(torch.ones((), device=self._device)) <= 1
            is_skipped &= is_least | (cast(Tensor, self._accelerator.reduce(is_lost, reduction="max")) > 0)
            scaler.update()
        self.skipped += is_skipped
        self._last_bad = torch.where(is_skipped, samples_seen, self._last_bad)
        return norms

    def check_trained(self, num_steps: int) -> None:
        """Check at the end of a run of `num_steps` steps that at least half of them updated the model.

        Raises:
            FloatingPointError: If not, with the counts.
        """
        skipped = int(self.skipped)
        if 2 * skipped > num_steps:
            raise FloatingPointError(
                f"{skipped} of {num_steps} steps were skipped, more than half, as a gradient was not finite; "
                "the model is saved, but has hardly been trained"
            )

    def check_skipped(self, line: Mapping[str, float]) -> None:
        """Stop a run of which too many steps were skipped, after the last `line` of its log.

        Raises:
            FloatingPointError: Names what is not finite in the line, and the samples of the last batch that was skipped.
        """
        config, skipped = self._config, int(self.skipped)
        if skipped <= config.max_skipped:
            return
        bad = [key for key, value in line.items() if not abs(value) < float("inf")]
        began = int(self._last_bad)
        data = self._task.dataset
        stream = SampleStream(data, batch_size=config.batch_size, seed=config.seed, weights=self._task.weights)
        pairs = stream.samples(began // config.batch_size)
        shown = ", ".join(str(index) for index, _ in pairs[:16]) + (", ..." if len(pairs) > 16 else "")
        raise FloatingPointError(
            f"{skipped} steps had a non-finite gradient, at most {config.max_skipped} are tolerated; "
            f"not finite at {int(line['samples'])} samples: {', '.join(bad) or 'nothing but gradients'}; "
            f"the last such batch began at sample {began}: samples {shown} of the dataset, epoch {began // len(data)}"
        )


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
