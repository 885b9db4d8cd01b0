"""Train for many steps and see that neither memory nor open files grow: `python tests/faults/soak_training.py --steps 10000`.

Memory is what is resident after the first tenth and at the end, a median of a hundred steps at each. Exit code 0 if it grew by less than
one percent and no file was left open. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from hiergen.training import loop

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "training" / "toy.py")
toy = importlib.util.module_from_spec(_spec)
sys.modules["toy"] = toy
_spec.loader.exec_module(toy)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    memory: list[int] = []
    files: list[int] = []
    step = loop._Run._step

    def watched(self: loop._Run, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        memory.append(resident())
        files.append(len(os.listdir("/proc/self/fd")))
        return step(self, batch)

    loop._Run._step = watched
    with tempfile.TemporaryDirectory() as scratch:
        # A line of the log every 100 steps, a checkpoint every 500.
        config = toy.toy_run(scratch, samples=8 * args.steps, log_every=800, checkpoint_every=4000)
        loop.fit(config, cpu=True)
    early = statistics.median(memory[args.steps // 10 : args.steps // 10 + 100])
    late = statistics.median(memory[-100:])
    growth = late / early - 1
    print(
        f"{args.steps} steps: {early / 2**20:.1f} MiB resident after a tenth, {late / 2**20:.1f} MiB at the end ({growth:+.2%}); "
        f"open files {files[args.steps // 10]} and {files[-1]}"
    )
    raise SystemExit(growth >= 0.01 or files[-1] > files[args.steps // 10])


if __name__ == "__main__":
    main()
