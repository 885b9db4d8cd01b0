"""What there is to run on: optional packages by the extra that brings them, devices by name, threads in forked processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiergen.telling import say

if TYPE_CHECKING:
    import torch


#: Rounds for which a waiting thread spins: enough for the gaps between operations, see "A busy machine" in docs/results/speed.md.
SPIN_COUNT = "10000"
_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def share_cores() -> str:
    """Choose how PyTorch computes beside what else runs here, before a long command; return a sentence where that is not its default.

    Threads that wait for each other spin for some 100 ms before they give up their core: where another program needs one, the thread
    that is waited for is the one that has none. So they spin briefly, if PyTorch is not imported yet, and there are no more threads
    than cores that are free; of several processes each keeps what its launcher gave it. What the user has set in `OMP_NUM_THREADS`, `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY` stays as it is.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    if "OMP_NUM_THREADS" in os.environ or int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return ""
    cores, free = free_cores()
    threads = max(1, int(free + 0.3))
    if threads >= cores:
        return ""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return f"{free:.1f} of {cores} cores are free: computing with {threads} (OMP_NUM_THREADS sets another number)"


def free_cores(seconds: float = 0.3, stat: str = "/proc/stat") -> tuple[int, float]:
    """Return how many cores this process may use, and how many of them did nothing for a moment; all, where the system does not say.

    Args:
        seconds: How long they are watched.
        stat: File in which Linux counts the time of each core by what it did.
    """
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()

    def times() -> tuple[int, int]:
        with open(stat) as file:
            counts = [list(map(int, line.split()[1:9])) for line in file if line.split(" ", 1)[0] in mine]
        # The fourth and fifth count are those of idling and of waiting for disks.
        return sum(map(sum, counts)), sum(count[3] + count[4] for count in counts)

    try:
        total, idle = times()
        time.sleep(seconds)
        later, idle_later = times()
    except OSError:
        return os.cpu_count() or 1, float(os.cpu_count() or 1)
    return len(mine), len(mine) * (idle_later - idle) / max(later - total, 1)


def require(module: str, extra: str, what: str) -> Any:
    """Import and return a module of an optional package.

    Args:
        module: Name of the module, e.g. "skimage.measure".
        extra: The extra of hiergen that installs its package, e.g. "shapes".
        what: Subject of the error, e.g. "surface extraction".

    Raises:
        ImportError: If the module is not there; says what needs it and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"skimage": "scikit-image", "av": "PyAV"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ImportError(f'{what} needs {package.replace("_", "-")}: pip install "hiergen[{extra}]"') from error


def choose_device(name: str) -> torch.device:
    """Return a device by name; "auto" is this process's GPU where PyTorch sees one, else the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    # Whatever takes a device begins here.
    settle_threads()
    if name == "auto":
        # A launcher of several processes on one machine numbers them; each takes the GPU of its number.
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        return gpu if torch.cuda.is_available() else torch.device("cpu")
    try:
        # An empty tensor shows whether the device is there, not only whether its name is one.
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}, expected 'auto', 'cpu', or a GPU that is there: {why}") from error


def processor_name() -> str:
    """Return what the system calls the processor."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M) if info.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the number format of weights that "auto" stands for on a device, and say which and why.

    It is bfloat16 where the device has instructions for its products, else float32. What that gains: "Number formats" in
    docs/results/speed.md.
    """
    import torch

    if fast := computes_bfloat16(device):
        say(f"dtype auto: bfloat16, whose products {fast} computes fast")
        return torch.bfloat16
    say(f"dtype auto: float32, since this {device.type.upper()} is not known to compute products in bfloat16 fast")
    return torch.float32


def computes_bfloat16(device: torch.device) -> str:
    """Return what computes products in bfloat16 fast on a device, in words; "" if nothing is known to."""
    import torch

    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return "the GPU"
    if device.type != "cpu":
        return ""
    sets = {"AMX": torch.cpu._is_amx_tile_supported, "AVX512-BF16": torch.cpu._is_avx512_bf16_supported}
    return next((f"the processor, by {name}," for name, has in sets.items() if has()), "")


def settle_threads() -> None:
    """Make PyTorch's operations safe in a forked process, with one thread each; elsewhere, do nothing.

    Call it before the first operation and before another thread is started. A fork takes over thread pools without their threads: GNU's
    OpenMP waits for them for ever, if the parent used them, unless it needs one thread alone. PyTorch's other pool is replaced at its
    first use, without a lock: of two threads that are the first together, one finds none ("Invalid thread pool!").
    """
    if _is_forked:
        import torch

        torch.set_num_threads(1)


@functools.cache
def leave_processes_at_exit() -> None:
    """End the group of processes that this one is in before the interpreter is torn down, unless it ends by an error.

    Gloo's threads otherwise run on meanwhile, and one that lets go of a Python object then aborts the process: "terminate called without
    an active exception", after everything was written, and a launcher reports a failure.
    """
    atexit.register(_leave_processes)


def _leave_processes() -> None:
    import torch.distributed

    # After an error the others may not come to the end of what they share with this process.
    if (
        getattr(sys, "last_value", None) is None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
    ):
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside, an operation takes one thread: how it is cut for several decides the last bits of matrix products and sums."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
