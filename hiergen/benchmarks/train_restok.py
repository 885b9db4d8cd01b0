"""`hiergen bench train-restok`: time, split and model FLOPs utilization of a training step of ResTok with any of its terms, or of HAR.

The step takes turns with the same one in PyTorch's own operations (`hiergen.kernels.dispatch.plain_on_cpu`).

FLOPs are those of matrix products, convolutions and attention in both directions, counted by PyTorch over a real step. The peak that they
are held against is a matrix product measured in the same run. All networks have random weights, which cost the same.
"""

from __future__ import annotations

import dataclasses
import operator
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiergen.benchmarks.measuring.timing import clock, describe_machine, plainly, show, take_turns
from hiergen.benchmarks.settings import TrainResTokSettings
from hiergen.data.config import DataConfig
from hiergen.environment import choose_device
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create, get_preset
from hiergen.training.config import OptimConfig
from hiergen.training.ema import Average
from hiergen.training.optim import make_optimizer
from hiergen.training.reporting.throughput import flop_counter, measure_peak
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, AlignmentConfig, CodebookConfig, PerceptualConfig
from hiergen.training.tasks.tokenizer import TokenizerTask


def run(settings: TrainResTokSettings) -> dict[str, Any]:
    """Measure, print a table, and return all numbers as JSON values.

    Raises:
        ValueError: If the preset is neither a ResTok nor a LevelAR.
    """
    kind = get_preset(settings.preset).model
    if kind not in ("ResTok", "LevelAR"):
        raise ValueError(f"preset {settings.preset!r} is a {kind}, expected a ResTok or a LevelAR")
    device = choose_device(settings.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        step = _Step(settings, device)
    step()
    with flop_counter() as counter, sdpa_kernel(SDPBackend.MATH):
        # Plain attention, because not every fused kernel has a formula in the counter.
        step()
    flops = counter.get_total_flops()
    times = take_turns({"hiergen": step, "plain": plainly(step)}, repeats=settings.repeats, device=device)
    seconds, parts = times["hiergen"], [step.split() for _ in range(settings.repeats)]
    peak = 1e12 * measure_peak(device, getattr(torch, settings.dtype))
    median = statistics.median(seconds)
    result = {
        "settings": dataclasses.asdict(settings),
        "machine": describe_machine(device),
        "step_s": {"median": median, "min": min(seconds), "max": max(seconds)},
        "times_faster_than_plain": statistics.median(map(operator.truediv, times["plain"], seconds)),
        "images_per_s": settings.batch / median,
        "flops": flops,
        "peak_flops_per_s": peak,
        "mfu": flops / median / peak,
        "split_s": {name: statistics.median(part[name] for part in parts) for name in parts[0]},
    }
    _print(result)
    return result


class _Step:
    """One optimizer step of every player on fixed random images or ids."""

    def __init__(self, settings: TrainResTokSettings, device: torch.device) -> None:
        self.device, self._dtype = device, getattr(torch, settings.dtype)
        rng = torch.Generator().manual_seed(settings.seed)
        self.task: TokenizerTask | _IdsTask
        if get_preset(settings.preset).model == "LevelAR":
            self.task = _IdsTask(settings.preset)
            batch = self.task.draw(settings.batch, rng)
        else:
            self.task = TokenizerTask(_config(settings))
            side, channels = self.task.tokenizer.layout.image_size, self.task.tokenizer.layout.in_channels
            batch = {"image": torch.rand(settings.batch, channels, side, side, generator=rng) * 2 - 1}
        self._batch = {name: value.to(device) for name, value in batch.items()}
        for module in self.task.players.values():
            module.to(device).train()
        optim = OptimConfig()
        self._optimizers = {name: make_optimizer(module, optim) for name, module in self.task.players.items()}
        self._average = Average(self.task.model.parameters(), decay=0.9999)
        self._rng = torch.Generator(device).manual_seed(settings.seed)

    def __call__(self, mark: Callable[[str], None] = lambda part: None) -> None:
        """Take a step; `mark` is called with the name of every part when it is done."""
        self.task.begin_step(0)
        for name, module in self.task.players.items():
            others = [m for other, m in self.task.players.items() if other != name]
            for other in others:
                other.requires_grad_(False)
            with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
                loss = self.task.losses(name, self._batch, self._rng)["loss"]
            mark(f"{name}: forward and losses")
            loss.backward()
            mark(f"{name}: backward")
            for other in others:
                other.requires_grad_(True)
            torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average.step(self.task.model.parameters())
        mark("clipping, optimizers, average")

    def split(self) -> dict[str, float]:
        """Return the seconds of the parts of a step that waits for the device after each."""
        seconds: dict[str, float] = {}
        last = clock(self.device)

        def mark(part: str) -> None:
            nonlocal last
            now = clock(self.device)
            seconds[part], last = now - last, now

        self(mark)
        return seconds


class _IdsTask:
    """The loss of a generator on random ids: `GeneratorTask` without a cache of codes."""

    def __init__(self, preset: str) -> None:
        self.model = create(preset)
        self.players: dict[str, nn.Module] = {"generator": self.model}

    def draw(self, batch: int, rng: torch.Generator) -> dict[str, Tensor]:
        vocab_size, num_classes = self.model.specs[0].vocab_size, self.model.config["num_classes"]
        ids = torch.randint(vocab_size, (batch, self.model.num_tokens), generator=rng)
        return {"ids": ids, "label": torch.randint(num_classes, (batch,), generator=rng)}

    def begin_step(self, samples_seen: int) -> None: ...

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        pyramid = TokenPyramid.split(batch["ids"], self.model.specs)
        losses: dict[str, Tensor] = self.model.loss(pyramid, batch["label"], rng=rng)
        return losses


def _config(settings: TrainResTokSettings) -> TokenizerTaskConfig:
    perceptual = adversarial = alignment = None
    if settings.perceptual != "none":
        perceptual = PerceptualConfig(network=settings.perceptual, weights="random")
    if settings.discriminator != "none":
        adversarial = AdversarialConfig(discriminator=settings.discriminator, weights="random")
    if settings.teacher != "none":
        alignment = AlignmentConfig(teacher=settings.teacher, weights="random")
    # A task wants data of the model's size; steps are timed on random pictures.
    size = int(get_preset(settings.preset).config["image_size"])
    return TokenizerTaskConfig(
        preset=settings.preset,
        data=DataConfig(split="test", size=size),
        overrides={"decoder_features": True} if alignment else {},
        perceptual=perceptual,
        adversarial=adversarial,
        alignment=alignment,
        codebook=CodebookConfig(),
    )


def _print(result: dict[str, Any]) -> None:
    settings, machine, step = result["settings"], result["machine"], result["step_s"]
    table = Table(title=f"{settings['preset']}, {settings['batch']} images per step, {machine}")
    for column in ("part", "ms", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    total = sum(result["split_s"].values())
    for part, seconds in result["split_s"].items():
        table.add_row(part, f"{1e3 * seconds:.1f}", f"{seconds / total:.1%}")
    show(table)
    print(
        f"step {1e3 * step['median']:.1f} ms ({1e3 * step['min']:.1f} to {1e3 * step['max']:.1f}), "
        f"{result['times_faster_than_plain']:.2f} times faster than in PyTorch's own operations, {result['images_per_s']:.2f} images/s, {result['flops'] / 1e9:.1f} GFLOP; "
        f"MFU {result['mfu']:.1%} of {result['peak_flops_per_s'] / 1e9:.1f} GFLOP/s in a matrix product"
    )
