"""How much arithmetic a run does of what its device could do: operations of a step, the device's peak, and their ratio (MFU)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from hiergen.kernels.products import has_onednn, linear

#: Side of the square matrices whose product measures a peak, by device type.
_SIDES = {"cpu": 512}
_SIDE = 4096


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter of operations, which also counts attention and oneDNN's linear layers on a CPU."""

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop_count(gradient, query, key, value)

    def product(x: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
        return 2 * math.prod(x) * int(out_shape[-1])

    aten = torch.ops.aten
    formulae: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    if has_onednn():
        formulae[torch.ops.mkldnn._linear_pointwise] = product
    return FlopCounterMode(display=False, custom_mapping=formulae)


class StepFlops:
    """Floating-point operations of the optimizer steps of this process, counted once for every set of players that takes part.

    Matrix products, convolutions and PyTorch's attention are counted, an addition and a multiplication being two; custom kernels (the
    Triton kernels of pyramid attention) and everything elementwise are not.

    Args:
        is_compiled: The players run through `torch.compile`, which would hide their operations: the counted step runs without it.
    """

    def __init__(self, *, is_compiled: bool = False) -> None:
        self._is_compiled = is_compiled
        self._counts: dict[tuple[str, ...], int] = {}
        self._total = 0

    @contextlib.contextmanager
    def count(self, players: tuple[str, ...]) -> Iterator[None]:
        """Add the operations of the step inside; they are watched the first time, and remembered after that."""
        if players not in self._counts:
            eager = torch.compiler.set_stance("force_eager") if self._is_compiled else contextlib.nullcontext()
            with eager, flop_counter() as counter:
                yield
            self._counts[players] = counter.get_total_flops()
        else:
            yield
        self._total += self._counts[players]

    def read(self) -> int:
        """Return the operations since the last call."""
        total, self._total = self._total, 0
        return total


def measure_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """Return the speed of large matrix products on a device in 10^12 operations per second: what MFU can be measured against.

    Args:
        device: Device to measure.
        dtype: Number format of the matrices.
        seconds: Time to measure, after one product to warm up; the fastest of the repetitions counts.
    """
    side = _SIDES.get(device.type, _SIDE)
    # Ones would flip few bits, at which GPUs draw less power and keep a higher clock than at a model's numbers.
    rng = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, generator=rng, device=device, dtype=dtype) for _ in range(2))
    # By the fastest program at hand, which is what models take.
    _wait(linear(left, right))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        started = time.perf_counter()
        _wait(linear(left, right))
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e12


def _wait(result: torch.Tensor) -> None:
    # Reading a value waits for whatever computes it, on any device.
    result[0, 0].item()
