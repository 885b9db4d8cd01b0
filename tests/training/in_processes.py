"""Train the toy in forked CPU processes, as `torchrun` would: `python in_processes.py FOLDER`. The test beside it reads the results."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import toy
from accelerate import PartialState, debug_launcher

from hiergen.files import sole_writer
from hiergen.nn.running.processes import ProcessBatchNorm2d
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.training.checkpoints import checkpoint, run_state
from hiergen.training.loop import fit
from hiergen.training.tasks.codebook_health import CodeRevival
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, CodebookConfig

#: A tokenizer that draws nothing, with everything that looks at a whole batch: entropies of the codebook, memory of used codes, batch
#: norm, an adaptive weight, averages of logits.
TOKENIZER = TokenizerTaskConfig(
    overrides={
        **{"cnn_channels": 8, "cnn_groups": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2},
        **{"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "vocab_size": 32},
        # At 0 the token that stands for dropped ones would have no gradient, which data parallelism does not allow.
        "drop_prob": 1e-9,
    },
    adversarial=AdversarialConfig(
        discriminator="patch", options={"dim": 4, "num_layers": 2}, augment=False, is_adaptive=True
    ),
    codebook=CodebookConfig(revive_after=1000),
)


WITHIN = ("rank 1 is killed within a write", "rank 1 is killed within a write in the background")


def check_batch_norm(rank: int) -> None:
    """Half of a batch on each of two processes against PyTorch's batch norm of the whole: values, gradients, running statistics."""
    rng = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(4, 3, 2, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    whole, half = torch.nn.BatchNorm2d(3).double(), ProcessBatchNorm2d(3).double()
    own = slice(2 * rank, 2 * rank + 2)
    given, part = images.clone().requires_grad_(), images[own].clone().requires_grad_()
    expected, found = whole(given), half(part)
    (expected * weights).sum().backward()
    (found * weights[own]).sum().backward()
    torch.testing.assert_close(found, expected[own])
    torch.testing.assert_close(part.grad, given.grad[own])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value)


def check_memory_of_codes(rank: int) -> None:
    """Each of two processes chooses one code; both remember both."""
    revival = CodeRevival(4, after=100)
    revival.note(TokenPyramid((torch.tensor([[rank]]),), (LevelSpec(num_tokens=1, dim=2, vocab_size=4),)), 7)
    assert revival.last_used.tolist() == [7, 7, 0, 0]


def wait_for(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.001)


def is_gone(noted: Path) -> bool:
    """Whether the process whose id is in a file has ended, whether or not its parent has heard of it."""
    stat = Path(f"/proc/{noted.read_text()}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def kill_rank_1_within_a_write(out: Path, rank: int) -> None:
    """Let rank 1 die by SIGKILL in the run's next checkpoint, when rank 0 has written half of its first file; rank 0 then writes on."""
    half_written, other = Path(f"{out}.half-written"), Path(f"{out}.pid-1")
    Path(f"{out}.pid-{rank}").write_text(str(os.getpid()))
    if rank == 1:
        save = run_state.RunKeeper.save

        def dying(self: run_state.RunKeeper, *args: Any, **options: Any) -> None:
            # Whoever dies must not need the writer for it: it is in the same call, and waits there for the other's word.
            threading.Thread(target=die, daemon=True).start()
            save(self, *args, **options)

        def die() -> None:
            wait_for(half_written.exists)
            os.kill(os.getpid(), signal.SIGKILL)

        run_state.RunKeeper.save = dying
        return
    write = checkpoint.save_file

    def halting(tensors: dict[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        if half_written.exists():
            return
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        half_written.touch()
        wait_for(lambda: other.exists() and is_gone(other))
        path.write_bytes(data)

    checkpoint.save_file = halting


def note_weights(out: str, rank: int) -> None:
    """Write down at every checkpoint what this process has for weights and moments."""
    save = run_state.RunKeeper.save

    def noting(self: run_state.RunKeeper, state: run_state.RunState, **options: Any) -> None:
        values = [value for module in state.players.values() for value in module.state_dict().values()]
        values += [x for optimizer in state.optimizers.values() for e in optimizer.state.values() for x in e.values()]
        total = hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()
        with open(f"{out}.weights-{rank}", "a") as file:
            file.write(f"{state.samples_seen} {total}\n")
        save(self, state, **options)

    run_state.RunKeeper.save = noting


def train(out: str, processes: int, accumulation: int, fault: str, with_tokenizer: bool) -> None:
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
        run_state.RunKeeper.save = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
    if fault.startswith("rank 1 is killed within"):
        kill_rank_1_within_a_write(Path(out), rank)
    if with_tokenizer:
        if processes == 2:
            check_batch_norm(rank)
            check_memory_of_codes(rank)
        fit(toy.toy_run(out, task=TOKENIZER, samples=16, optim=toy.OptimConfig(lr=1e-3)), cpu=True)
        return
    # All but the first loss of one process are NaN.
    poison = tuple(range(1, 100)) if fault == "rank 1 is poisoned" and rank == 1 else ()
    task = toy.ToyConfig(is_random=False, poison=poison)
    if fault == "a gradient of rank 1 is NaN":
        note_weights(out, rank)
        if rank == 1:
            task = toy.ToyConfig(is_random=False, poison_gradient=(2, 3, 7), poison_critic=(3, 4))
    behind = fault.endswith("in the background")
    changes = {"accumulation": accumulation, "keep_last": 9, "background_checkpoints": behind}
    fit(toy.toy_run(out, task=task, **changes), cpu=True)


def launch(out: Path, processes: int, accumulation: int = 1, fault: str = "", with_tokenizer: bool = False) -> str:
    """Return the error that ended the processes, or nothing; how long they took to end after a checkpoint was half written is left beside."""
    half_written = Path(f"{out}.half-written")
    try:
        arguments = (str(out), processes, accumulation, fault, with_tokenizer)
        debug_launcher(train, args=arguments, num_processes=processes)
    except Exception as error:
        if half_written.exists():
            wait_for(lambda: all(is_gone(Path(f"{out}.pid-{rank}")) for rank in range(processes)), seconds=60)
            Path(f"{out}.seconds").write_text(str(time.time() - half_written.stat().st_mtime))
        return f"{type(error).__name__}: {error}"
    return ""


def drop_newest(out: Path, keep: int) -> None:
    for path in sorted((out / "checkpoints").glob("samples-*"))[keep:]:
        shutil.rmtree(path)


def main() -> None:
    folder = Path(sys.argv[1])
    # What this imports, the forked processes need not.
    TOKENIZER.build()
    errors = {
        "1": launch(folder / "1", 1),
        "2": launch(folder / "2", 2),
        "4, accumulated": launch(folder / "4, accumulated", 4, accumulation=2),
        "tokenizer 1": launch(folder / "tokenizer 1", 1, with_tokenizer=True),
        "tokenizer 2": launch(folder / "tokenizer 2", 2, with_tokenizer=True),
    }
    shutil.copytree(folder / "2", folder / "2-then-1")
    drop_newest(folder / "2-then-1", keep=2)
    errors["2-then-1"] = launch(folder / "2-then-1", 1)
    for fault in ("rank 1 is poisoned", "a gradient of rank 1 is NaN"):
        errors[fault] = launch(folder / fault, 2, fault=fault)
    for fault in ("rank 0 cannot write", "rank 1 is killed", *WITHIN):
        shutil.copytree(folder / "2", folder / fault)
        drop_newest(folder / fault, keep=2)
        errors[fault] = launch(folder / fault, 2, fault=fault)
    for fault in WITHIN:
        # As it was left, and one resumed from it.
        shutil.copytree(folder / fault, folder / f"{fault}, resumed")
        errors[f"{fault}, resumed"] = launch(folder / f"{fault}, resumed", 2)
    with sole_writer(folder / "2"):
        errors["held"] = launch(folder / "2", 2)
    for name, error in errors.items():
        (folder / f"{name}.error").write_text(error)


if __name__ == "__main__":
    main()
