"""Linear layers on a CPU: oneDNN's products, with weights in its own layout where they are used again and again.

PyTorch leaves float32 products on a CPU to MKL, which has slow kernels for small products and, on AMD's processors, for all. The plain
form of everything here is `torch.nn.functional.linear`; results agree with it up to rounding.

Letters: `n` rows, `d` channels that go in, `k` channels that come out.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

#: Fewest multiplications of a product for which oneDNN pays: below, its call takes longer than the product. With a gradient the call
#: goes through Python in both directions.
_LEAST_WORK, _LEAST_WORK_WITH_GRADIENT = 1 << 19, 1 << 21
#: Most rows for which a weight in oneDNN's layout pays: above, bringing it there is a small part of the work.
_MOST_ROWS = 128
#: Number of calls on one weight after which it is brought into oneDNN's layout.
_CALLS_BEFORE_PACKING = 2
_packs = True


def set_packing(enabled: bool) -> None:
    """Allow or forbid copies of weights in oneDNN's layout, which take as much memory again as the weights that are used so."""
    global _packs
    _packs = enabled


@functools.cache
def has_onednn() -> bool:
    """Return whether this PyTorch has oneDNN's linear layer, and the processor the instructions that it is fast with."""
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and capability in ("AVX512", "AVX2")  # type: ignore[no-untyped-call]


@functools.cache
def is_amd() -> bool:
    """Return whether the processor is AMD's, on which MKL computes float32 products at less than half of oneDNN's rate."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return False


class PackedWeight:
    """A copy of a weight in oneDNN's layout, made once the weight has been used a few times without a gradient.

    The copy is for one state of one tensor: a weight that is written to or replaced is used as it is, and copied anew when it has come
    to rest. Copies and pickles of this object are empty.
    """

    def __init__(self) -> None:
        self._calls = 0
        self._state: tuple[int, int] | None = None
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def of(self, weight: Float[Tensor, "k d"]) -> Tensor | None:
        """Return the weight in oneDNN's layout; None if it was not used often enough, or memory is short."""
        # A tensor that was made in inference mode has no version: nothing tells when it is written to.
        state = (weight.data_ptr(), -1 if weight.is_inference() else weight._version)
        if state != self._state:
            self._calls, self._state, self._packed = 0, state, None
        if self._packed is None:
            self._calls += 1
            if self._calls > _CALLS_BEFORE_PACKING and _packs and state[1] >= 0 and _has_memory():
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        return self._packed

    def drop(self) -> None:
        """Forget the copy."""
        self._calls, self._state, self._packed = 0, None, None


def linear(
    x: Float[Tensor, "*rows d"],
    weight: Float[Tensor, "k d"],
    bias: Float[Tensor, " k"] | None = None,
    *,
    packed: PackedWeight | None = None,
) -> Float[Tensor, "*rows k"]:
    """Return x weight^T + bias.

    Args:
        packed: Where to keep the weight in oneDNN's layout between calls.
    """
    if torch.compiler.is_compiling() or not _takes(x, weight):
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        if packed is not None:
            packed.drop()
        if x.dtype == torch.float32 and is_amd():
            out: Tensor = _Linear.apply(x, weight, bias)
            return out
        return F.linear(x, weight, bias)
    ready = packed.of(weight) if packed is not None and rows <= _MOST_ROWS else None
    if ready is not None:
        return _onednn(x, ready, bias)
    return _onednn(x, weight, bias) if x.dtype == torch.float32 and is_amd() else F.linear(x, weight, bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN can compute a product, and is worth its call."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        # No subclass of a tensor, by which others quantize and distribute weights.
        and type(weight) in (nn.Parameter, Tensor)
        and type(x) in (nn.Parameter, Tensor)
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and has_onednn()
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    """A linear layer by oneDNN in both directions; the gradient can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        to_x = _Linear.apply(gradient, weight.t(), None) if needs_x else None
        to_weight = _Linear.apply(rows.t(), x.flatten(0, -2).t(), None) if needs_weight else None
        return to_x, to_weight, rows.sum(dim=0) if needs_bias and ctx.has_bias else None


def _has_memory() -> bool:
    """Return whether at least half of the memory is free, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return 2 * sizes.get("MemAvailable", 0) > sizes.get("MemTotal", 0)
