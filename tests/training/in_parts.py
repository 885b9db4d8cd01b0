"""Train with blocks whole and split over two forked CPU processes: `python in_parts.py FOLDER`; `test_tensor_parallel.py` reads the results."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import in_processes
import in_shares
import torch

from hiergen.data.codes import write_codes
from hiergen.nn.depth.plan import ladder
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.training.tasks.settings import GeneratorTaskConfig

SIZES = {"dim": 32, "num_heads": 2, "ffn_dim": 48, "depth": 2, "plan": ladder(2).to_json()}
#: Not those inside the blocks; the rest draws what one process would draw.
DROPOUT = {"attention_dropout": 0.0, "ffn_dropout": 0.0}


def write_data(folder: Path) -> None:
    specs = create("har-tiny").specs

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        rng = torch.Generator().manual_seed(start)
        levels = tuple(torch.randint(512, (stop - start, spec.num_tokens), generator=rng) for spec in specs)
        return [TokenPyramid(levels, specs)], torch.arange(stop - start) % 3

    for name in ("train", "test"):
        write_codes(folder / name, encode, num_samples=40, classes=["a", "b", "c"], source=name)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    write_data(folder)
    codes = {"codes": str(folder / "train"), "validation_codes": str(folder / "test")}
    task = GeneratorTaskConfig(preset="har-tiny", overrides={**SIZES, **DROPOUT}, **codes)
    run: dict[str, Any] = {"samples": 32, "checkpoint_every": 16, "ema_decay": 0.5, "keep_best": "val/loss"}
    run |= {"accumulation": 2, "activation_checkpointing": True, "keep_last": 9}
    ways: dict[str, dict[str, Any]] = {"none": {"processes": 1}, "tensor": {"sharding": "tensor"}}
    for name, how in ways.items():
        in_shares.launch(folder / name, task, **run, **how)
    for before, after in (("none", "tensor"), ("tensor", "none")):
        out = folder / f"{before}, then {after}"
        shutil.copytree(folder / before, out)
        in_processes.drop_newest(out, keep=1)
        in_shares.launch(out, task, **run, **ways[after])


if __name__ == "__main__":
    main()
