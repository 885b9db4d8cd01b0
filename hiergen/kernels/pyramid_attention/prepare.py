"""The fused preparation kernels as PyTorch operators, with shapes for tracing and, for the pyramid, a gradient."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiergen.kernels.pyramid_attention.pooling import POOLS, TailRule, packed_rows, padded_length, pool_counts, unpack

#: Key blocks of a row that one program sorts, and keys of a block whose means of 8 fit into one tile.
MAX_COLUMNS, MAX_KEY_BLOCK = 4096, 1024


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


def runs_triton(device: torch.device) -> bool:
    """Return whether preparation runs through the kernels by itself: on a GPU that runs Triton, never through the interpreter."""
    return device.type == "cuda" and triton_problem("cuda", -1 if device.index is None else device.index) is None


class KeyPyramid(NamedTuple):
    """What one pass over keys and values leaves, for the plan and for the attention.

    Attributes:
        pooled: (2, b, g, r, k): packed pyramids of keys and values.
        cosines: (b, g, 3, m): for pools 2, 4, 8 the sum of `similarity_cap`'s cosines in each group of 8 keys; None if not asked for.
    """

    pooled: Tensor
    cosines: Tensor | None

    @property
    def keys_by_eight(self) -> Tensor:
        """Means of 8 keys up to whole key blocks, (b, g, m, k), a view without gradient."""
        return unpack(self.pooled[0].detach(), 8)

    def similarity_cap(self, key_block: int, thresholds: tuple[float, float, float]) -> Tensor:
        """Return what `pooling.similarity_cap` does.

        Raises:
            ValueError: If the cosines were not asked for.
        """
        if self.cosines is None:
            raise ValueError("the pyramid was built without cosines, which a plan with a similarity cap needs")
        per_block = key_block // 8
        means = self.cosines.unflatten(-1, (-1, per_block)).sum(-1) / per_block
        cap = torch.ones_like(means[:, :, 0], dtype=torch.uint8)
        for index, (pool, threshold) in enumerate(zip(POOLS[1:], thresholds, strict=True)):
            cap = torch.where(means[:, :, index] * pool / 8 > threshold, pool, cap)
        return cap.to(torch.uint8)


def key_pyramid(k: Tensor, v: Tensor, key_block: int, *, tail: TailRule, with_cosines: bool = False) -> KeyPyramid:
    """Return the pyramid of keys and values through one kernel; differentiable but for the cosines."""
    pooled, cosines = key_pyramid_op(k, v, key_block, tail == "replicate", with_cosines)
    return KeyPyramid(pooled, cosines if with_cosines else None)


@torch.library.custom_op(
    "hiergen::key_pyramid",
    mutates_args=(),
    schema="(Tensor k, Tensor v, int key_block, bool replicate, bool with_cosines) -> (Tensor, Tensor)",
)
def key_pyramid_op(k: Tensor, v: Tensor, key_block: int, replicate: bool, with_cosines: bool) -> tuple[Tensor, Tensor]:
    """Return the packed pyramids of keys and values, (2, b, g, r, k), and the cosines of `KeyPyramid` (or nothing)."""
    from hiergen.kernels.pyramid_attention import triton_prepare

    out, cosines = k.new_empty(_pyramid_shape(k, key_block)), _new_cosines(k, key_block, with_cosines)
    with on_device(k):
        for x, pooled, similar in ((k, out[0], cosines if with_cosines else None), (v, out[1], None)):
            triton_prepare.build_pyramid(
                x if x.stride(-1) == 1 else x.contiguous(), key_block, out=pooled, replicate=replicate, cosines=similar
            )
    return out, cosines


@key_pyramid_op.register_fake
def _pyramid_fake(k: Tensor, v: Tensor, key_block: int, replicate: bool, with_cosines: bool) -> tuple[Tensor, Tensor]:
    return k.new_empty(_pyramid_shape(k, key_block)), _new_cosines(k, key_block, with_cosines)


def _new_cosines(k: Tensor, key_block: int, with_cosines: bool) -> Tensor:
    shape = (*k.shape[:2], 3, padded_length(k.shape[2], key_block) // 8) if with_cosines else (0,)
    return k.new_empty(shape, dtype=torch.float32)


def _pyramid_shape(k: Tensor, key_block: int) -> tuple[int, ...]:
    return (2, k.shape[0], k.shape[1], packed_rows(padded_length(k.shape[2], key_block)), k.shape[3])


def _save_lengths(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    k, _, key_block, replicate, _ = inputs
    ctx.numbers = (k.shape[2], key_block, replicate)
    ctx.mark_non_differentiable(output[1])


def _pyramid_backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    dk, dv = (_spread(part, *ctx.numbers) for part in gradient.unbind(0))
    return dk, dv, None, None, None


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


@torch.library.custom_op(
    "hiergen::pooled_importance",
    mutates_args=(),
    schema="(Tensor q, Tensor pooled_keys, Tensor? log_counts, int num_keys, int query_block, int key_block, bool is_causal, "
    "int key_offset, float scale) -> Tensor",
)
def pooled_importance_op(
    q: Tensor, pooled_keys: Tensor, log_counts: Tensor | None, num_keys: int, query_block: int, key_block: int,
    is_causal: bool, key_offset: int, scale: float,
) -> Tensor:  # fmt: skip
    """Return block scores (b h i j), float32; see `triton_importance.pooled_importance`."""
    from hiergen.kernels.pyramid_attention import triton_importance

    with on_device(q):
        return triton_importance.pooled_importance(
            q if q.stride(-1) == 1 else q.contiguous(), pooled_keys, log_counts, num_keys=num_keys,
            query_block=query_block, key_block=key_block, is_causal=is_causal, key_offset=key_offset, scale=scale,
        )  # fmt: skip


@pooled_importance_op.register_fake
def _importance_fake(
    q: Tensor,
    pooled_keys: Tensor,
    log_counts: Tensor | None,
    num_keys: int,
    query_block: int,
    key_block: int,
    *args: Any,
) -> Tensor:
    shape = (*q.shape[:2], -(-q.shape[2] // query_block), -(-num_keys // key_block))
    return q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(
    "hiergen::assign_pools",
    mutates_args=(),
    schema="(Tensor scores, Tensor visible, int[] pools, float[] bounds, int[] units, str mode, float epsilon, float min_full, "
    "bool include) -> Tensor",
)
def assign_pools_op(
    scores: Tensor, visible: Tensor, pools: list[int], bounds: list[float], units: list[int], mode: str,
    epsilon: float, min_full: float, include: bool,
) -> Tensor:  # fmt: skip
    """Return the pools of all rows, uint8 (b h i j); see `triton_importance.assign`."""
    from hiergen.kernels.pyramid_attention import triton_importance

    with on_device(scores):
        return triton_importance.assign(
            scores.float().contiguous(), visible, tuple(zip(pools, bounds, units, strict=True)), mode=mode,
            epsilon=epsilon, min_full=min_full, include=include,
        )  # fmt: skip


@assign_pools_op.register_fake
def _assign_fake(scores: Tensor, *args: Any) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.uint8)
