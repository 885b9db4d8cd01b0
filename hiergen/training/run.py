"""Run a recipe from a command line: overrides, a dry run, then `fit`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from hiergen.config import parse, to_json
from hiergen.training.config import TrainConfig
from hiergen.training.loop import FitResult, RunInterruptedError, fit


def main(recipe: Callable[[], TrainConfig]) -> None:
    """Run a recipe file as a program: `python FILE`, `accelerate launch FILE`, with overrides such as `--optim.lr 3e-4`."""
    try:
        run_recipe(recipe(), sys.argv[1:], name=sys.argv[0])
    except RunInterruptedError as error:
        print(error, file=sys.stderr)
        raise SystemExit(128 + error.signal_number) from None


def run_recipe(config: TrainConfig, overrides: Sequence[str], *, name: str) -> FitResult | None:
    """Apply overrides to a recipe's config and train.

    `--dry-run` among the overrides prints the resolved config, the parameters and the samples to see, and returns None.
    """
    dry = "--dry-run" in overrides
    config = parse(
        config, [word for word in overrides if word != "--dry-run"], prog=name, description=TrainConfig.__doc__
    )
    if dry:
        print(json.dumps(to_json(config), indent=2))
        task = config.task.build()
        for player, module in task.players.items():
            print(f"{player}: {sum(p.numel() for p in module.parameters()):,} parameters")
        print(f"{config.samples:,} samples to see of {len(task.dataset):,} in {config.num_steps:,} steps")
        return None
    result = fit(config, title=type(config.task).__name__.removesuffix("TaskConfig").lower())
    print(f"{result.samples_seen:,} samples seen; model in {result.model_dir}")
    return result
