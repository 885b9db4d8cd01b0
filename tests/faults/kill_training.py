"""Kill a training run with SIGKILL again and again, half of the times while it saves, and compare what is left with a run that was let be.

    python tests/faults/kill_training.py --kills 200

Every life is a forked process, so that 200 of them import PyTorch once. After each kill every published checkpoint must agree with its manifest
and none that was there before may be lost. Exit code 0 if all of it held.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from hiergen.training.checkpoints.checkpoint import find_checkpoint, find_problem, load_checkpoint
from hiergen.training.loop import fit
from hiergen.training.reporting.run_log import MEASURED

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "training" / "toy.py")
toy = importlib.util.module_from_spec(_spec)
sys.modules["toy"] = toy
_spec.loader.exec_module(toy)


def start(out: Path, steps: int) -> int:
    """Fork a process that trains and return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        fit(toy.toy_run(str(out), samples=8 * steps, checkpoint_every=16), cpu=True)
        code = 0
    finally:
        os._exit(code)


def is_over(pid: int) -> bool:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status):
        raise AssertionError(f"a run ended by itself with code {os.waitstatus_to_exitcode(status)}")
    return bool(done)


def leftovers(checkpoints: Path) -> set[str]:
    return {path.name for path in checkpoints.glob(".*-samples-*")}


def kill_once(out: Path, steps: int, rng: random.Random, while_saving: bool) -> str:
    """Let the run live for a moment and kill it; return "finished", "saving" or "elsewhere"."""
    checkpoints = out / "checkpoints"
    before = leftovers(checkpoints)
    pid = start(out, steps)
    until = time.monotonic() + rng.uniform(0.0, 1.0)
    while time.monotonic() < until or (while_saving and not leftovers(checkpoints) - before):
        if is_over(pid):
            return "finished"
        time.sleep(0.0005)
    if while_saving:
        time.sleep(rng.uniform(0.0, 0.01))
    if is_over(pid):
        return "finished"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "saving" if leftovers(checkpoints) - before else "elsewhere"


def position(out: Path) -> int:
    """Return the position of the newest checkpoint, having checked every published one; 0 for none."""
    published = sorted((out / "checkpoints").glob("samples-*"))
    broken = {path.name: problem for path in published if (problem := find_problem(path))}
    assert not broken, broken
    return int(published[-1].name.removeprefix("samples-")) if published else 0


def assert_same(out: Path, whole: Path) -> None:
    (a, _), (b, _) = (load_checkpoint(find_checkpoint(folder / "checkpoints")) for folder in (out, whole))
    assert a.keys() == b.keys()
    for stem, tensors in a.items():
        assert all(torch.equal(value, b[stem][name]) for name, value in tensors.items()), stem
    curves = []
    for folder in (out, whole):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        curves.append([{k: v for k, v in line.items() if k not in MEASURED} for line in lines])
    assert curves[0] == curves[1], "the curves differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--steps", type=int, default=200, help="optimizer steps of a run; when it is finished another begins"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    counts = {"saving": 0, "elsewhere": 0, "finished": 0}
    with tempfile.TemporaryDirectory() as scratch:
        whole, run = Path(scratch, "whole"), Path(scratch, "run-0")
        _, status = os.waitpid(start(whole, args.steps), 0)
        assert status == 0, f"the uninterrupted run failed: {status}"
        reached = 0
        while counts["saving"] + counts["elsewhere"] < args.kills:
            kind = kill_once(run, args.steps, rng, while_saving=rng.random() < 0.5)
            counts[kind] += 1
            now = position(run)
            assert now >= reached, f"fell back from {reached} to {now} samples"
            reached = now
            if kind == "finished":
                assert_same(run, whole)
                run, reached = Path(scratch, f"run-{counts['finished']}"), 0
        _, status = os.waitpid(start(run, args.steps), 0)
        assert status == 0, f"the last run failed: {status}"
        assert_same(run, whole)
    kills = counts["saving"] + counts["elsewhere"]
    print(
        f"{kills} kills, {counts['saving']} while saving; 0 checkpoints lost, 0 broken; {counts['finished'] + 1} runs finished, equal bit for bit"
    )


if __name__ == "__main__":
    main()
