"""Run a recipe from a command line: overrides, a dry run, then `fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from accelerate import PartialState
from torch import nn

from hiergen.config import parse, to_json
from hiergen.training.config import TrainConfig
from hiergen.training.loop import FitResult, RunInterruptedError, fit
from hiergen.training.plan import follow_pass
from hiergen.training.tasks.base import count_trained


def main(recipe: Callable[[], TrainConfig]) -> None:
    """Run a recipe file as a program: `python FILE`, `accelerate launch FILE`, with overrides such as `--optim.lr 3e-4`."""
    try:
        run_recipe(recipe(), sys.argv[1:], name=sys.argv[0])
    except RunInterruptedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(128 + error.signal_number) from None


def run_recipe(config: TrainConfig, overrides: Sequence[str], *, name: str) -> FitResult | None:
    """Apply overrides to a recipe's config and train.

    `--dry-run` among the overrides prints the resolved config, the parameters, the memory of parameters and of a pass, and the samples to
    see, and returns None; it reads neither data nor weights.
    """
    dry = "--dry-run" in overrides
    config = parse(config, [word for word in overrides if word != "--dry-run"], prog=name)
    if dry:
        _describe(config)
        return None
    result = fit(config, title=type(config.task).__name__.removesuffix("TaskConfig").lower())
    if PartialState().is_main_process:
        print(f"{result.samples_seen:,} samples seen; model in {result.model_dir}")
    return result


def _describe(config: TrainConfig) -> None:
    print(json.dumps(to_json(config), indent=2))
    players, numbers = config.task.sketch(), 0
    for index, (name, player) in enumerate(players.items()):
        count = count_trained(player)
        print(f"{name}: {count:,} parameters")
        # Weight, gradient and two moments; the first player also has an average.
        numbers += count * (5 if index == 0 and config.ema_decay is not None else 4)
    print(f"{numbers * 4 / 2**30:.2f} GiB for weights, gradients, moments and averages")
    first = next(iter(players))
    # Tables are made on the CPU wherever the model is.
    model = nn.Module.to(getattr(players[first], "tokenizer", players[first]), "meta")
    step = follow_pass(model, shapes=getattr(getattr(config.task, "data", None), "batch", None))
    samples = config.batch_size // config.accumulation
    print(
        f"{step.activation_bytes * samples / 2**30:.2f} GiB of activations for the {samples} samples that one process looks at together "
        f"({step.activation_bytes / 2**20:.1f} MiB each, {first} alone, float32)"
    )
    print(f"{step.flops / 1e9:.1f} GFLOPs per sample, forward and backward, {first} alone")
    print(f"{config.samples:,} samples to see in {config.num_steps:,} steps")
