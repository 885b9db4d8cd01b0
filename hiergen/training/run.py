"""Run a recipe from a command line: overrides, a dry run, then `fit`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hiergen.config import overlay, parse, read_values, to_json
from hiergen.environment import share_cores
from hiergen.telling import say_next
from hiergen.training.config import TrainConfig

# What trains is imported where it is used: help, and what a wrong option is told, must not wait for PyTorch.
if TYPE_CHECKING:
    from hiergen.training.loop import FitResult
    from hiergen.training.plan import Pass


def main(recipe: Callable[[], TrainConfig]) -> None:
    """Run a recipe file as a program: `python FILE`, `accelerate launch FILE`, with overrides such as `--optim.lr 3e-4`."""
    if not {"-h", "--help"} & set(sys.argv[1:]) and (said := share_cores()):
        print(said, file=sys.stderr)
    try:
        run_recipe(recipe(), sys.argv[1:], name=sys.argv[0])
    except RuntimeError as error:
        # A `RunInterruptedError`, which only what trains can name.
        number = getattr(error, "signal_number", None)
        if number is None:
            raise
        print(error, file=sys.stderr)
        raise SystemExit(128 + number) from None


def run_recipe(config: TrainConfig, overrides: Sequence[str], *, name: str) -> FitResult | None:
    """Apply overrides to a recipe's config and train.

    `--config FILE` replaces the fields that a JSON or YAML file gives, such as a run's `config.json`; the other words of the command line
    are on top. `--dry-run` prints the resolved config as such a file, with the parameters, the memory of parameters and of a pass, and
    the samples to see in comments, and returns None; it reads no data, and no weights but those of `--init`.

    Raises:
        ValueError: If the file cannot be read or does not fit, or the run is refused, see `fit`.
    """
    config, words = _read_file(config, list(overrides))
    dry = "--dry-run" in words
    config = parse(config, [word for word in words if word != "--dry-run"], prog=name)
    if dry:
        _describe(config)
        return None
    from accelerate import PartialState

    from hiergen.training.loop import fit

    words = re.findall("[A-Z][a-z]*", type(config.task).__name__.removesuffix("TaskConfig"))
    result = fit(config, title=" ".join(words).lower())
    if PartialState().is_main_process:
        print(f"{result.samples_seen:,} samples seen; model in {result.model_dir}")
        say_next(config.task.follows(str(result.model_dir)))
    return result


def _read_file(config: TrainConfig, words: list[str]) -> tuple[TrainConfig, list[str]]:
    """Return the config with what the file behind `--config` gives, and the other words."""
    for index, word in enumerate(words):
        option, _, path = word.partition("=")
        if option == "--config":
            path, end = (path, index + 1) if path else (" ".join(words[index + 1 : index + 2]), index + 2)
            return overlay(config, read_values(path)), words[:index] + words[end:]
    return config, words


def _describe(config: TrainConfig) -> None:
    print(json.dumps(to_json(config), indent=2))
    if config.init is not None:
        from hiergen.training.finetune.weights import load_source, take_sizes

        config = dataclasses.replace(config, task=take_sizes(config.task, load_source(config.init, config.task)))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        _describe_model(config)
    # Comments, so that all of it can be read back.
    print("\n".join(f"# {line}" for line in said.getvalue().splitlines()))


def _describe_model(config: TrainConfig) -> None:
    from torch import nn

    from hiergen.training.finetune.lora import add_adapters
    from hiergen.training.plan import depends_on_data, follow_pass
    from hiergen.training.tasks.base import count_trained

    players, numbers = config.task.sketch(), 0
    if config.lora.rank:
        add_adapters(next(iter(players.values())), config.lora, seed=config.seed)
    for index, (name, player) in enumerate(players.items()):
        count = count_trained(player)
        print(f"{name}: {count:,} parameters")
        # Weight, gradient and two moments; the first player also has an average.
        numbers += count * (5 if index == 0 and config.ema_decay is not None else 4)
    print(f"{numbers * 4 / 2**30:.2f} GiB for weights, gradients, moments and averages")
    first = next(iter(players))
    # Tables are made on the CPU wherever the model is.
    model = nn.Module.to(getattr(players[first], "tokenizer", players[first]), "meta")
    if depends_on_data(model):
        print(f"activations and FLOPs of a sample depend on what {first} reads")
    else:
        _describe_pass(
            config, first, follow_pass(model, shapes=getattr(getattr(config.task, "data", None), "batch", None))
        )
    print(f"{config.samples:,} samples to see in {config.num_steps:,} steps")


def _describe_pass(config: TrainConfig, first: str, step: Pass) -> None:
    samples = config.batch_size // config.accumulation
    print(
        f"{step.activation_bytes * samples / 2**30:.2f} GiB of activations for the {samples} samples that one process looks at together "
        f"({step.activation_bytes / 2**20:.1f} MiB each, {first} alone, float32)"
    )
    print(f"{step.flops / 1e9:.1f} GFLOPs per sample, forward and backward, {first} alone")
