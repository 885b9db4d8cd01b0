"""Train the toy in forked CPU processes, as `torchrun` would: `python in_processes.py FOLDER`. The test beside it reads the results."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState, debug_launcher

from hiergen.training import run_state
from hiergen.training.loop import fit

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
sys.modules["toy"] = toy
_spec.loader.exec_module(toy)


def train(out: str, processes: int, accumulation: int, fault: str) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    assert state.num_processes == processes, f"{state.num_processes} processes, expected {processes}"
    rank = state.process_index
    if fault == "rank 0 cannot write" and rank == 0:

        def fail(*args: object) -> None:
            raise OSError(28, "No space left on device")

        run_state.save_checkpoint = fail
    if fault == "rank 1 is killed" and rank == 1:
        # The other process is writing, or waits for this one.
        run_state.RunKeeper.save = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    task = toy.ToyConfig(is_random=False)
    fit(toy.toy_run(out, task=task, accumulation=accumulation, keep_last=9), cpu=True)


def launch(out: Path, processes: int, accumulation: int = 1, fault: str = "") -> str:
    """Return the error that ended the processes, or nothing."""
    try:
        debug_launcher(train, args=(str(out), processes, accumulation, fault), num_processes=processes)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def drop_newest(out: Path, keep: int) -> None:
    for path in sorted((out / "checkpoints").glob("samples-*"))[keep:]:
        shutil.rmtree(path)


def main() -> None:
    folder = Path(sys.argv[1])
    errors = {
        "1": launch(folder / "1", 1),
        "2": launch(folder / "2", 2),
        "4": launch(folder / "4", 4),
        "accumulated": launch(folder / "accumulated", 2, accumulation=2),
    }
    shutil.copytree(folder / "2", folder / "2-then-4")
    drop_newest(folder / "2-then-4", keep=2)
    errors["2-then-4"] = launch(folder / "2-then-4", 4)
    for fault in ("rank 0 cannot write", "rank 1 is killed"):
        shutil.copytree(folder / "2", folder / fault)
        drop_newest(folder / fault, keep=2)
        errors[fault] = launch(folder / fault, 2, fault=fault)
    for name, error in errors.items():
        (folder / f"{name}.error").write_text(error)


if __name__ == "__main__":
    main()
