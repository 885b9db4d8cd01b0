"""Change one thing in a checkpoint, again and again: a flipped bit, a cut, a deletion; each must be noticed and the file be named.

    python tests/faults/damage_checkpoint.py --count 1000

Exit code 0 if all were.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from hiergen.training.checkpoints.checkpoint import MANIFEST, find_problem, save_checkpoint

TENSORS = {"model": {"w": torch.arange(64.0), "b": torch.ones(3)}, "ema": {"w": torch.zeros(64)}}


def damage(file: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    if kind == "deletion":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[: rng.randrange(len(data))])
    else:
        at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def run(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Return how often each kind of damage was done, and what went unnoticed or was blamed on another file."""
    rng = random.Random(seed)
    good = save_checkpoint(folder / "good", 10, TENSORS, {"samples_seen": 10}, 2)
    names = sorted(os.listdir(good))
    done: Counter[str] = Counter()
    missed = []
    for trial in range(count):
        broken = folder / "broken"
        shutil.copytree(good, broken)
        name, kind = rng.choice(names), rng.choice(["flipped bit", "cut", "deletion"])
        damage(broken / name, kind, rng)
        problem = find_problem(broken)
        # A damaged manifest may accuse a file in place of itself.
        if problem is None or (name != MANIFEST and name not in problem):
            missed.append(f"trial {trial}, {kind} of {name}: {problem}")
        done[kind] += 1
        shutil.rmtree(broken)
    return done, missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        done, missed = run(Path(scratch), arguments.count, arguments.seed)
    print(*missed, sep="\n", end="\n" if missed else "")
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(done.items()))
    print(f"{arguments.count - len(missed)} of {arguments.count} noticed, the file named ({kinds})")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
