"""The fused preparation kernels as PyTorch operators, with shapes for tracing and, for the pyramid, a gradient."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention.pooling import POOLS, TailRule, packed_rows, padded_length, pool_counts, unpack


@torch.compiler.assume_constant_result
def triton_problem(device: str, index: int) -> str | None:
    """Return why Triton kernels cannot run on a device; on a CPU they can through the interpreter.

    Args:
        device: Its type.
        index: Its number, -1 for the current one.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability(None if index < 0 else index)
        return None if major >= 8 else f"the GPU has compute capability {major}.{minor}, below 8.0"
    if device != "cpu":
        return f"the inputs are on {device}"
    from triton import knobs

    return None if knobs.runtime.interpret else "the inputs are on a CPU and TRITON_INTERPRET=1 is not set"


def on_device(x: Tensor) -> torch.cuda.device:
    """Return a context in which kernels are launched on the device of `x`; it does nothing for the CPU."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


@torch.library.custom_op(
    "hiergen::key_pyramid", mutates_args=(), schema="(Tensor k, Tensor v, int key_block, bool replicate) -> Tensor"
)
def key_pyramid_op(k: Tensor, v: Tensor, key_block: int, replicate: bool) -> Tensor:
    """Return the packed pyramids of keys and values, (2, b, g, r, k); see `pooling.build_pyramid`."""
    from hiergen.kernels.pyramid_attention import triton_prepare

    out = k.new_empty(_pyramid_shape(k, key_block))
    with on_device(k):
        for x, pooled in zip((k, v), out.unbind(0), strict=True):
            triton_prepare.build_pyramid(
                x if x.stride(-1) == 1 else x.contiguous(), key_block, out=pooled, replicate=replicate
            )
    return out


@key_pyramid_op.register_fake
def _pyramid_fake(k: Tensor, v: Tensor, key_block: int, replicate: bool) -> Tensor:
    return k.new_empty(_pyramid_shape(k, key_block))


def _pyramid_shape(k: Tensor, key_block: int) -> tuple[int, ...]:
    return (2, k.shape[0], k.shape[1], packed_rows(padded_length(k.shape[2], key_block)), k.shape[3])


def _save_lengths(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    k, _, key_block, replicate = inputs
    ctx.numbers = (k.shape[2], key_block, replicate)


def _pyramid_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    dk, dv = (_spread(part, *ctx.numbers) for part in gradient.unbind(0))
    return dk, dv, None, None


def _spread(gradient: Tensor, length: int, key_block: int, replicate: bool) -> Tensor:
    """Return the gradient of the keys, (b, g, length, k), from that of their packed pyramid."""
    padded = padded_length(length, key_block)
    total = gradient.new_zeros(*gradient.shape[:2], padded, gradient.shape[3], dtype=torch.float32)
    tail: TailRule = "replicate" if replicate else "exact"
    for pool in POOLS[1:]:
        count = pool_counts(length, padded, pool, tail=tail, device=gradient.device).clamp(min=1)
        share = unpack(gradient, pool).float() / count[:, None, :, None]
        total += share.repeat_interleave(pool, dim=2)
    keys = total[:, :, :length].clone()
    if replicate:
        # The repeats of the last key are that key.
        keys[:, :, -1] += total[:, :, length:].sum(2)
    return keys.to(gradient.dtype)


key_pyramid_op.register_autograd(_pyramid_backward, setup_context=_save_lengths)


@torch.library.custom_op(
    "hiergen::plan_lists",
    mutates_args=(),
    schema="(Tensor pools, int num_keys, int query_block, int key_block, bool is_causal, int key_offset) -> (Tensor, Tensor)",
)
def plan_lists_op(
    pools: Tensor, num_keys: int, query_block: int, key_block: int, is_causal: bool, key_offset: int
) -> tuple[Tensor, Tensor]:
    """Return ids (b h i j) and counts (b h i 8) of a plan; see `plan.PlanLists`."""
    from hiergen.kernels.pyramid_attention import triton_prepare

    with on_device(pools):
        return triton_prepare.build_lists(
            pools,
            num_keys=num_keys,
            query_block=query_block,
            key_block=key_block,
            is_causal=is_causal,
            key_offset=key_offset,
        )


@plan_lists_op.register_fake
def _lists_fake(pools: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return pools.new_empty(pools.shape, dtype=torch.int32), pools.new_empty(*pools.shape[:3], 8, dtype=torch.int32)
