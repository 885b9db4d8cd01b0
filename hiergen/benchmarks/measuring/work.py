"""How much a call computes and moves, and what the machine could do at best: the bound that its time is held against."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hiergen.benchmarks.measuring.timing import clock
from hiergen.training.reporting.throughput import flop_counter, measure_peak


class _Products(TorchDispatchMode):
    """Adds up the operations, and the bytes of all operands and results, of matrix products, convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes = 0
        self._formulae = flop_counter().flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self._formulae.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            # In inference mode a product arrives inside an operator that is made of others.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self.bytes += sum(map(_bytes, tensors))
        return out


def _bytes(x: Tensor) -> int:
    # One value that is expanded to many is read once. A weight in oneDNN's layout has no storage that can be asked.
    return x.numel() * x.itemsize if x.is_mkldnn else min(x.numel() * x.itemsize, x.untyped_storage().nbytes())


def measure_work(call: Callable[[], Any]) -> dict[str, int]:
    """Return "flops" and "bytes" of the products of a call, which is run once.

    An addition and a multiplication are two operations. Bytes are those of every operand and result once per product, as if nothing were in
    a cache. Elementwise operations and compiled or custom kernels are not counted.
    """
    products = _Products()
    with products:
        call()
    return {"flops": products.flops, "bytes": products.bytes}


def measure_machine(device: torch.device, *, megabytes: int = 256, seconds: float = 0.5) -> dict[str, Any]:
    """Return what the device does at best: "flops_per_s" of matrix products by number format, and "bytes_per_s" of copying.

    Args:
        device: Device to measure.
        megabytes: Size of what is copied, which should be more than the caches hold; reading and writing count.
        seconds: Time of each measurement; the fastest of the repetitions counts.
    """
    source = torch.ones(megabytes << 18, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        started = clock(device)
        target.copy_(source)
        best = min(best, clock(device) - started)
    formats = ("float32", "bfloat16")
    return {
        "flops_per_s": {name: 1e12 * measure_peak(device, getattr(torch, name), seconds=seconds) for name in formats},
        "bytes_per_s": 2 * source.numel() * source.itemsize / best,
    }


def bound_seconds(work: Mapping[str, Any], machine: Mapping[str, Any], dtype: str) -> float:
    """Return the least time that the work can take on the machine: its operations and its bytes at their rates, whichever is longer.

    A model whose weights stay in a cache can be faster than its bytes allow.

    Args:
        work: What `measure_work` returned.
        machine: What `measure_machine` returned.
        dtype: Number format of the products; one that was not measured is taken for bfloat16.
    """
    rates = machine["flops_per_s"]
    return float(max(work["flops"] / rates.get(dtype, rates["bfloat16"]), work["bytes"] / machine["bytes_per_s"]))
