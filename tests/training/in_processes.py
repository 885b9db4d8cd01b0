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

from hiergen.nn.batch_norm import ProcessBatchNorm2d
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.training import run_state
from hiergen.training.codebook_health import CodebookConfig, CodeRevival
from hiergen.training.loop import fit
from hiergen.training.tasks import TokenizerTaskConfig
from hiergen.training.tokenizer_losses import AdversarialConfig

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
sys.modules["toy"] = toy
_spec.loader.exec_module(toy)


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
    if with_tokenizer:
        if processes == 2:
            check_batch_norm(rank)
            check_memory_of_codes(rank)
        fit(toy.toy_run(out, task=TOKENIZER, samples=16, optim=toy.OptimConfig(lr=1e-3)), cpu=True)
        return
    # All but the first loss of one process are NaN.
    poison = tuple(range(1, 100)) if fault == "rank 1 is poisoned" and rank == 1 else ()
    task = toy.ToyConfig(is_random=False, poison=poison)
    fit(toy.toy_run(out, task=task, accumulation=accumulation, keep_last=9), cpu=True)


def launch(out: Path, processes: int, accumulation: int = 1, fault: str = "", with_tokenizer: bool = False) -> str:
    """Return the error that ended the processes, or nothing."""
    try:
        arguments = (str(out), processes, accumulation, fault, with_tokenizer)
        debug_launcher(train, args=arguments, num_processes=processes)
    except Exception as error:
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
    errors["rank 1 is poisoned"] = launch(folder / "rank 1 is poisoned", 2, fault="rank 1 is poisoned")
    for fault in ("rank 0 cannot write", "rank 1 is killed"):
        shutil.copytree(folder / "2", folder / fault)
        drop_newest(folder / fault, keep=2)
        errors[fault] = launch(folder / fault, 2, fault=fault)
    for name, error in errors.items():
        (folder / f"{name}.error").write_text(error)


if __name__ == "__main__":
    main()
