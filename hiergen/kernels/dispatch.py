"""Choosing among the backends of an operation: each says what it needs and, when it cannot run, why.

"auto" takes the first that can and logs the choice once; a backend that is named and cannot run raises.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

_takes_plain = False


@contextlib.contextmanager
def plain_on_cpu() -> Iterator[None]:
    """Inside, what has a plain form of a few lines and a faster one for CPUs (linear layers, rotations, the layout of maps, top-p) takes the
    plain one: what the faster one is tested against and timed beside."""
    global _takes_plain
    before, _takes_plain = _takes_plain, True
    try:
        yield
    finally:
        _takes_plain = before


def is_fast_cpu(device: torch.device) -> bool:
    """Return whether to take an operation's form for CPUs: the tensors lie on one, nothing is traced, and the plain form was not asked for."""
    return device.type == "cpu" and not torch.compiler.is_compiling() and not _takes_plain


class AttentionRequest(NamedTuple):
    """What the backends of an attention operation look at.

    Attributes:
        device: Device of the inputs.
        dtype: Number format of the inputs.
        head_dim: Channels per head.
        needs_grad: Whether there will be a backward pass.
        dense_cannot: Why dense attention cannot stand in for a sparse operation; None if it can.
        dense_pays: Why "auto" should let it; None if sparse attention is the faster one, or nothing is known.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    needs_grad: bool
    dense_cannot: str | None = None
    dense_pays: str | None = None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to run an operation.

    Attributes:
        name: What a caller asks for.
        needs: What the backend runs on, for people.
        run: The operation.
        refuse: Takes a request (the operation's own type) and whether the backend was asked for by name; returns why it
            cannot run, or None. The default is for a backend that runs everywhere.
    """

    name: str
    needs: str
    run: Callable[..., Any]
    refuse: Callable[[Any, bool], str | None] = lambda request, is_named: None


def choose(operation: str, backends: Sequence[Backend], request: Any, name: str = "auto") -> Backend:
    """Return the backend to run.

    Args:
        operation: Name of the operation, for messages.
        backends: Backends in order of preference.
        request: What the backends' `refuse` looks at.
        name: A backend's name or "auto".

    Raises:
        ValueError: If no backend has this name.
        RuntimeError: If the named backend cannot run, or none can.
    """
    if name != "auto":
        for backend in backends:
            if backend.name == name:
                reason = backend.refuse(request, True)
                if reason is not None:
                    raise RuntimeError(
                        f"backend {name!r} of {operation} cannot run: {reason}. It needs {backend.needs}."
                    )
                return backend
        names = ", ".join(repr(backend.name) for backend in backends)
        raise ValueError(f"backend is {name!r}, expected 'auto' or one of {names} for {operation}")
    reasons: list[str] = []
    for backend in backends:
        reason = backend.refuse(request, False)
        if reason is None:
            # A log call would split a compiled graph.
            if not torch.compiler.is_compiling():
                _log_once(operation, backend.name, "; ".join(reasons))
            return backend
        reasons.append(f"not {backend.name}: {reason}")
    raise RuntimeError(f"no backend of {operation} can run: {'; '.join(reasons)}")


@functools.lru_cache(maxsize=256)
def _log_once(operation: str, name: str, reasons: str) -> None:
    logger.info("%s runs on backend %r%s", operation, name, f" ({reasons})" if reasons else "")
