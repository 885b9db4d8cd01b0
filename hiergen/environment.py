"""What there is to run on: optional packages by the extra that brings them, devices by name, threads in forked processes."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


#: Rounds for which a waiting thread spins: enough for the gaps between operations, see "A busy machine" in docs/results/speed.md.
SPIN_COUNT = "1000"
_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def wait_briefly() -> dict[str, str]:
    """Let threads of OpenMP that wait for each other give up their core soon, unless the user has said how they wait.

    By default they spin for some 100 ms: where another program needs a core, the thread that is waited for is the one that has none.
    Call it before PyTorch is imported; later it changes nothing. What is set is returned, and `hiergen env` shows it.
    """
    said = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ)
    if said or "torch" in sys.modules:
        return {}
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    return {"GOMP_SPINCOUNT": SPIN_COUNT}


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


def settle_threads() -> None:
    """Make PyTorch's operations safe in a forked process, with one thread each; elsewhere, do nothing.

    Call it before the first operation and before another thread is started. A fork takes over thread pools without their threads: GNU's
    OpenMP waits for them for ever, if the parent used them, unless it needs one thread alone. PyTorch's other pool is replaced at its
    first use, without a lock: of two threads that are the first together, one finds none ("Invalid thread pool!").
    """
    if _is_forked:
        import torch

        torch.set_num_threads(1)


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
