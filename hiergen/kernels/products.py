"""Linear layers on a CPU: oneDNN's products, with weights in its own layout where few rows meet them.

PyTorch leaves float32 products on a CPU to MKL, which has slow kernels for small products and, on AMD's processors, for all. The plain
form of everything here is `torch.nn.functional.linear`; results agree with it up to rounding.

Letters: `n` rows, `d` channels that go in, `k` channels that come out.
"""

from __future__ import annotations

import functools
import weakref
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.dispatch import is_fast_cpu

#: Fewest multiplications of a product for which oneDNN pays: below, its call takes longer than the product. With a gradient the call
#: goes through Python in both directions.
_LEAST_WORK, _LEAST_WORK_WITH_GRADIENT = 1 << 19, 1 << 21
#: Most rows for which a weight in oneDNN's layout pays: above, bringing it there is a small part of the work.
_MOST_ROWS = 128
#: Number of values by which a weight is known again.
_NUM_VALUES = 16
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
def number_formats() -> tuple[torch.dtype, ...]:
    """Return the number formats of oneDNN's products: it refuses bfloat16 on processors without instructions for it."""
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)


@functools.cache
def is_amd() -> bool:
    """Return whether the processor is AMD's, on which MKL computes float32 products at less than half of oneDNN's rate."""
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:4096]
    except OSError:
        return False


class PackedWeight:
    """A copy of a weight in oneDNN's layout, made when it is first asked for.

    The copy is for one state of one tensor: it is made anew when the weight was written to or replaced. Writing through `weight.data`
    counts no version, so values spread over the weight are compared too; what changes none of them there goes unseen. Copies and pickles
    of this object are empty.
    """

    def __init__(self) -> None:
        self._weight: weakref.ref[Tensor] | None = None
        self._state: tuple[int, int] = (0, 0)
        self._values: Tensor | None = None
        self._packed: Tensor | None = None

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def of(self, weight: Float[Tensor, "k d"]) -> Tensor | None:
        """Return the weight in oneDNN's layout; None where that is forbidden, memory is short, or nothing tells when it is written to."""
        if weight.is_inference() or not weight.is_contiguous():
            return None
        state = (weight.data_ptr(), weight._version)
        values = weight.detach().as_strided((_NUM_VALUES,), (weight.numel() // _NUM_VALUES,))
        is_known = self._weight is not None and self._weight() is weight and state == self._state
        if not is_known or self._values is None or not torch.equal(values, self._values):
            # At its first use already, so that equal calls give equal digits.
            is_wanted = _packs and _has_memory()
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None) if is_wanted else None
            self._weight, self._state, self._values = weakref.ref(weight), state, values.clone()
        return self._packed

    def drop(self) -> None:
        """Forget the copy."""
        self._weight, self._values, self._packed = None, None, None


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
    if not _takes(x, weight):
        return F.linear(x, weight, bias)
    # PyTorch takes oneDNN by itself in bfloat16.
    is_slow = x.dtype == torch.float32 and is_amd()
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (x, weight, bias)):
        if packed is not None:
            packed.drop()
        pays = is_slow and x.numel() * weight.shape[0] >= _LEAST_WORK_WITH_GRADIENT
        out: Tensor = _Linear.apply(x, weight, bias) if pays else F.linear(x, weight, bias)
        return out
    few = x.numel() <= _MOST_ROWS * x.shape[-1]
    ready = packed.of(weight) if packed is not None and few else None
    if ready is not None:
        return _onednn(x, ready, bias)
    return _onednn(x, weight, bias) if is_slow else F.linear(x, weight, bias)


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN can compute a product, and is worth its call."""
    return (
        is_fast_cpu(x.device)
        and x.ndim > 1
        and x.dtype == weight.dtype
        # No subclass of a tensor, by which others quantize and distribute weights.
        and type(weight) in (nn.Parameter, Tensor)
        and type(x) in (nn.Parameter, Tensor)
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and has_onednn()
        and x.dtype in number_formats()
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
    """Return whether at least a quarter of the memory is free, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return 4 * sizes.get("MemAvailable", 0) > sizes.get("MemTotal", 0)
