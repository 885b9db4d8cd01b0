"""Stop a run at four places, with and without data workers, for four kinds of models; resume it; compare with the run that was let be.

    python tests/faults/resume_matrix.py

Six steps over eight samples, so that every second step ends an epoch. Compared bit for bit: which samples were drawn and what was made of
them, every line of the log but its measured times, weights, moments and averages. Prints a table; exit code 0 if all 32 cases hold.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hiergen.data.config import DataConfig
from hiergen.data.stream import SampleStream
from hiergen.training import loop
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.reporting.run_log import MEASURED
from hiergen.training.tasks.settings import TaskConfig

_spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parents[1] / "training" / "kinds.py")
kinds = importlib.util.module_from_spec(_spec)
sys.modules["kinds"] = kinds
_spec.loader.exec_module(kinds)

NUM_SAMPLES, BATCH, STEPS = 8, 4, 6
#: Stop signal in which step, counted from 0. After the last there is nothing to resume: the run ends as if it had not been asked to.
STOPS = {"first step": 0, "middle of an epoch": 2, "end of an epoch": 3, "last step": STEPS - 1}
WORKERS = (0, 2)


def tokenizer_with_gan(folder: Path) -> TaskConfig:
    """Pictures from disk, cropped and mirrored at random."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(NUM_SAMPLES):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
    data = DataConfig(source=str(pictures), in_memory=False, crop="random", flip=True)
    return kinds.restok_with_gan(folder, data)


KINDS: dict[str, Callable[[Path], TaskConfig]] = {
    "tokenizer with GAN": tokenizer_with_gan,
    "HAR": kinds.generator("har-tiny", count=NUM_SAMPLES, dim=20, depth=1),
    "MAR": kinds.generator("mar-tiny", count=NUM_SAMPLES, **kinds.MAR),
    "shape VAE": kinds.KINDS["shape vae"],
}


@contextlib.contextmanager
def watched(drawn: dict[int, str], stop: int | None) -> Iterator[None]:
    """Inside, runs note by their step what they drew, and get SIGTERM in the step `stop`."""
    get, step = SampleStream.__getitem__, loop._Run._step

    def with_ids(self: SampleStream, index: int) -> dict[str, Tensor]:
        return get(self, index) | {"ids": torch.tensor(self.samples(index))}

    def noting(self: Any, batch: dict[str, Tensor]) -> Any:
        at = self.state.samples_seen // BATCH
        bits = hashlib.sha256(b"".join(batch[name].contiguous().numpy().tobytes() for name in sorted(batch)))
        drawn[at] = f"{batch.pop('ids').tolist()} {bits.hexdigest()}"
        if at == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    SampleStream.__getitem__, loop._Run._step = with_ids, noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        SampleStream.__getitem__, loop._Run._step = get, step  # type: ignore[method-assign]


def train(task: TaskConfig, out: Path, *, workers: int = 0, stop: int | None = None) -> dict[str, Any]:
    """Train to the end, stopped once and resumed if `stop` says where; return all that is compared."""
    config = TrainConfig(
        task=task, out=str(out), samples=STEPS * BATCH, batch_size=BATCH, accumulation=2, num_workers=workers,
        optim=OptimConfig(lr=1e-3, warmup_samples=8), ema_decay=0.5, log_every=BATCH, trackers=(),
    )  # fmt: skip
    drawn: dict[int, str] = {}
    with watched(drawn, stop), open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
        was_stopped = False
        try:
            fit(config, cpu=True)
        except RunInterruptedError:
            was_stopped = True
        assert was_stopped == (stop is not None and stop < STEPS - 1), "it was not stopped where it should be"
    if stop is not None:
        with watched(drawn, None), open(os.devnull, "w") as silence, contextlib.redirect_stderr(silence):
            fit(config, cpu=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tensors, _ = load_checkpoint(find_checkpoint(out / "checkpoints"))
    return {
        "samples": drawn,
        "losses": [{name: value for name, value in line.items() if name not in MEASURED} for line in lines],
        **{stem: {name: value.numpy().tobytes() for name, value in group.items()} for stem, group in tensors.items()},
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return sorted(name for name in {*found, *expected} if name not in found or found[name] != expected.get(name, found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    kinds_asked = parser.parse_args().kinds
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    started, held = time.process_time(), 0
    cases = list(itertools.product(STOPS.items(), WORKERS))
    print(f"| {'stopped in':18} | workers | {' | '.join(kinds_asked)} |")
    print(f"|{'---|' * (2 + len(kinds_asked))}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = {kind: Path(scratch, f"{number}") for number, kind in enumerate(kinds_asked)}
        for folder in folders.values():
            folder.mkdir()
        tasks = {kind: KINDS[kind](folder) for kind, folder in folders.items()}
        whole = {kind: train(task, folders[kind] / "whole") for kind, task in tasks.items()}
        for number, ((place, stop), workers) in enumerate(cases):
            row = []
            for kind, task in tasks.items():
                found = train(task, folders[kind] / f"{number}", workers=workers, stop=stop)
                wrong = differences(found, whole[kind])
                held += not wrong
                row.append(f"differs: {', '.join(wrong)}" if wrong else "equal")
            print(f"| {place:18} | {workers} | {' | '.join(row)} |", flush=True)
    total = len(cases) * len(kinds_asked)
    print(f"{held} of {total} cases are equal bit for bit; {time.process_time() - started:.0f} s of processor time")
    return int(held < total)


if __name__ == "__main__":
    sys.exit(main())
