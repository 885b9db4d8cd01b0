"""Train on two forked CPU processes with parameters whole and shared out: `python in_shares.py FOLDER`; `test_sharding.py` reads the results."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import in_processes
import torch
import toy
from accelerate import PartialState, debug_launcher

from hiergen.data.codes import write_codes
from hiergen.generators.flow import model as flow_model
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.nn.depth.plan import cycle
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.training.checkpoints.run_state import RunKeeper
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig, TaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig

HIERATOK = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}
FLOW = {"dim": 16, "depth": 2, "num_heads": 2}
#: Two blocks that run twice each, with differences: merged inside what is gathered, and again in the backward pass.
LOOPS = {"plan": cycle(2, loops=2, rank=2, lag=1).to_json()}


def write_data(folder: Path) -> None:
    """A tokenizer, and codes of it: 40 held-out ones are a batch for both processes and one for the second alone."""
    tokenizer = create("hieratok-tiny", **HIERATOK)
    tokenizer.save_pretrained(folder / "tokenizer")

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        levels = tuple(torch.randn(stop - start, spec.num_tokens, spec.dim, generator=rng) for spec in tokenizer.specs)
        return [TokenPyramid(levels, tokenizer.specs)], torch.arange(stop - start) % 3

    for name in ("train", "test"):
        write_codes(folder / name, encode, num_samples=40, classes=["a", "b", "c"], source=name)


def flow(folder: Path) -> TaskConfig:
    """A generator that is scored and drawn from while it trains."""
    return GeneratorTaskConfig(
        preset="flow-tiny",
        overrides=FLOW,
        codes=str(folder / "train"),
        validation_codes=str(folder / "test"),
        tokenizer=str(folder / "tokenizer"),
    )


def train(out: str, task: TaskConfig, poisoned: bool, changes: dict[str, Any]) -> None:
    """Train one process's share; the first time it saves, it writes down how much of everything it holds."""
    torch.set_num_threads(1)
    # The pictures of a run are drawn in two steps and not in fifty.
    flow_model.FlowSettings = functools.partial(FlowSettings, num_steps=2)
    rank = PartialState(cpu=True).process_index
    save = RunKeeper.save

    def watched(self: RunKeeper, state: Any, **options: Any) -> None:
        moments = [entry["exp_avg"] for entry in state.optimizers[next(iter(state.players))].state.values()]
        parameters = list(next(iter(state.players.values())).parameters())
        sizes = {"parameters": parameters, "moments": moments, "averages": state.ema.shadow}
        held = {name: sum(_held(value) for value in values) for name, values in sizes.items()}
        Path(f"{out}.held-{rank}").write_text(json.dumps(held))
        save(self, state, **options)

    RunKeeper.save = watched
    if poisoned and rank == 1:
        # The second step has a loss that is not finite, all others but the first only gradients: of the toy, and twice of the critic.
        task = dataclasses.replace(task, poison=(1,), poison_gradient=tuple(range(2, 100)), poison_critic=(5, 6))
    fit(toy.toy_run(out, task=task, **changes), cpu=True)


def _held(value: torch.Tensor) -> int:
    return value.to_local().numel() if hasattr(value, "to_local") else value.numel()


def launch(out: Path, task: TaskConfig, *, poisoned: bool = False, processes: int = 2, **changes: Any) -> None:
    """Train to the end; what went wrong is left beside the folder."""
    error = ""
    try:
        debug_launcher(train, args=(str(out), task, poisoned, changes), num_processes=processes)
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    out.with_name(f"{out.name}.error").write_text(error)


def main() -> None:
    folder = Path(sys.argv[1])
    write_data(folder)
    gan = dataclasses.replace(in_processes.TOKENIZER, codebook=CodebookConfig())
    # What this imports, the forked processes need not.
    gan.build()
    plain = toy.ToyConfig(is_random=False)
    flow_run: dict[str, Any] = {"samples": 32, "checkpoint_every": 16, "ema_decay": 0.5, "trackers": None}
    flow_run |= {"keep_best": "val/loss", "activation_checkpointing": True, "accumulation": 2}
    runs: dict[str, tuple[TaskConfig, dict[str, Any]]] = {
        "toy": (plain, {"keep_last": 9}),
        "flow": (flow(folder), flow_run),
        "loops": (dataclasses.replace(flow(folder), overrides={**FLOW, **LOOPS}), flow_run),
        "gan": (gan, {"samples": 16, "optim": toy.OptimConfig(lr=1e-4)}),
    }
    for name, (task, changes) in runs.items():
        for sharding in ("none", "full"):
            launch(folder / f"{name} {sharding}", task, sharding=sharding, **changes)
    for before, after in (("none", "full"), ("full", "none")):
        out = folder / f"toy {before}, then {after}"
        shutil.copytree(folder / f"toy {before}", out)
        in_processes.drop_newest(out, keep=2)
        launch(out, plain, sharding=after, keep_last=9)
    launch(folder / "poisoned", plain, poisoned=True, sharding="full")
    launch(folder / "revived", in_processes.TOKENIZER, sharding="full")


if __name__ == "__main__":
    main()
