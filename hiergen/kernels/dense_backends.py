"""The backends of dense and level-masked attention: PyTorch's fused one, the formula, calls per group, FlexAttention, xformers, hub kernels.

All take `(query, key, value, *, mask, spans, scale)` as `hiergen.kernels.attention.attention` does, with a scale that may be None, and return
`(b, h, q, k)`. What a backend cannot do it says in `refuse`.

Letters: `b` batch, `h` heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.kernels.dispatch import Backend
from hiergen.kernels.spans import Spans

#: The backend of diffusers' dispatcher that runs FlashAttention 2 from the Hugging Face Hub.
HUB_KERNEL = "flash_hub"
#: Fewest keys, in all and per group, for which calls per group pay on a CPU; see "Attention over levels" in docs/results/speed.md.
_LEAST_KEYS, _LEAST_KEYS_PER_GROUP = 512, 32


class DenseRequest(NamedTuple):
    """What the backends look at.

    Attributes:
        device: Device of the inputs.
        dtype: Number format of the inputs.
        head_dim: Channels per head.
        needs_grad: Whether there will be a backward pass.
        num_keys: Number of keys.
        rule: How it is said which keys are seen: not at all, by a dense mask, or by `Spans`.
        num_groups: Number of groups of the spans.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    needs_grad: bool
    num_keys: int
    rule: Literal["all", "mask", "spans"]
    num_groups: int = 1


def dense_mask(query: Tensor, key: Tensor, mask: Tensor | None, spans: Spans | None) -> Tensor | None:
    """Return the mask, or the one that the spans stand for."""
    return mask if spans is None else spans.dense(key.shape[2], query.device)


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, spans: Spans | None, scale: float | None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(query, key, mask, spans), scale=scale)


def _pays_by_group(request: DenseRequest) -> bool:
    least = max(_LEAST_KEYS, _LEAST_KEYS_PER_GROUP * request.num_groups)
    is_fast = request.device.type == "cpu" and request.dtype == torch.float32
    return request.rule == "spans" and is_fast and request.num_keys >= least


def _refuse_sdpa(request: DenseRequest, is_named: bool) -> str | None:
    if not is_named and _pays_by_group(request):
        return "on a CPU, in float32 and from 512 keys on, a call per group takes less time than one with a mask"
    is_short = request.device.type == "cpu" and request.dtype == torch.bfloat16 and request.num_keys <= 512
    if is_short and not is_named:
        if request.needs_grad:
            return "on a CPU, in bfloat16 and on up to 512 keys, its backward pass takes five times as long as the formula's"
        # Processors with AMX were not measured.
        if not torch.cpu._is_amx_tile_supported():
            return "on a CPU without AMX, in bfloat16 and on up to 512 keys, it takes twice as long as the formula"
    return None


def reference(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, spans: Spans | None, scale: float | None
) -> Tensor:
    scores = (1 / math.sqrt(query.shape[-1]) if scale is None else scale) * (query @ key.transpose(-1, -2))
    mask = dense_mask(query, key, mask, spans)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1) @ value


def grouped(query: Tensor, key: Tensor, value: Tensor, *, mask: None, spans: Spans, scale: float | None) -> Tensor:
    call: Callable[..., Tensor] = F.scaled_dot_product_attention
    parts = [
        call(query[:, :, a:z], key[:, :, i:j], value[:, :, i:j], scale=scale)
        for (a, z), (i, j) in zip(spans.queries, spans.keys, strict=True)
    ]
    return torch.cat(parts, dim=2)


def _refuse_grouped(request: DenseRequest, is_named: bool) -> str | None:
    if request.rule != "spans":
        return "there are no groups: it takes spans"
    return None if is_named or _pays_by_group(request) else "it was not measured to be faster here"


def flex(query: Tensor, key: Tensor, value: Tensor, *, mask: None, spans: Spans | None, scale: float | None) -> Tensor:
    # Here, because importing pyramid attention takes longer than dense attention should.
    from hiergen.kernels.pyramid_attention.backends.flex import flex_call

    block_mask = None if spans is None else _block_mask(spans, query.shape[2], key.shape[2], query.device)
    out: Tensor = flex_call(query.device)(query, key, value, block_mask=block_mask, scale=scale)
    return out


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _block_mask(spans: Spans, num_queries: int, num_keys: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    first, last = spans.bounds(device)

    # Run-time checkers of annotations keep a record that FlexAttention's tracing may not touch.
    @no_type_check
    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (first[i] <= j) & (j < last[i])

    return create_block_mask(sees, None, None, num_queries, num_keys, device=device)


def _refuse_flex(request: DenseRequest, is_named: bool) -> str | None:
    if request.rule == "mask":
        return "it would make block masks of a dense mask in every call: give spans"
    if request.device.type not in ("cpu", "cuda", "xpu"):
        return f"the inputs are on {request.device.type}"
    if request.device.type == "cpu" and request.needs_grad:
        return "FlexAttention has no gradient on a CPU"
    if request.device.type == "cuda" and request.head_dim & (request.head_dim - 1):
        return f"the head size is {request.head_dim}, no power of two"
    return None


def xformers(
    query: Tensor, key: Tensor, value: Tensor, *, mask: None, spans: Spans | None, scale: float | None
) -> Tensor:
    """Return attention by xformers; groups become blocks of one long sequence, and keys that several groups see are copied."""
    from xformers.ops import memory_efficient_attention

    heads_last = [x.transpose(1, 2) for x in (query, key, value)]
    if spans is None:
        out: Tensor = memory_efficient_attention(*heads_last, scale=scale)
        return out.transpose(1, 2)
    index, bias = _blocks(spans, query.shape[0], query.device)
    joined = heads_last[0].flatten(0, 1)[None], *(x[:, index].flatten(0, 1)[None] for x in heads_last[1:])
    out = memory_efficient_attention(*joined, attn_bias=bias, scale=scale)
    return out[0].unflatten(0, (query.shape[0], -1)).transpose(1, 2)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _blocks(spans: Spans, batch: int, device: torch.device) -> tuple[Tensor, Any]:
    """Return the keys of all groups, one after another, and the bias that keeps groups and samples apart."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    index = torch.cat([torch.arange(start, end, device=device) for start, end in spans.keys])
    lengths = ([end - start for start, end in part] * batch for part in (spans.queries, spans.keys))
    return index, BlockDiagonalMask.from_seqlens(*lengths, device=device)


def _refuse_xformers(request: DenseRequest, is_named: bool) -> str | None:
    if request.rule == "mask":
        return "its operators differ in the dense masks that they take: give spans"
    try:
        from xformers.ops import fmha
        from xformers.ops.fmha.attn_bias import BlockDiagonalMask
    except ImportError as error:
        return f"xformers cannot be imported ({error})"
    x = torch.empty(1, 8, 1, request.head_dim, device=request.device, dtype=request.dtype)
    bias = None if request.rule == "all" else BlockDiagonalMask.from_seqlens([8], [8], device=request.device)
    inputs = fmha.Inputs(query=x, key=x, value=x, attn_bias=bias)
    for operators in (fmha.ALL_FW_OPS, *([fmha.ALL_BW_OPS] if request.needs_grad else [])):
        reasons = {operator.NAME: operator.not_supported_reasons(inputs) for operator in operators}
        if all(reasons.values()):
            said = "; ".join(f"{name}: {', '.join(found)}" for name, found in reasons.items())
            return f"none of its operators can run here ({said or 'it has none'})"
    return None


def hub(query: Tensor, key: Tensor, value: Tensor, *, mask: None, spans: None, scale: float | None) -> Tensor:
    """Return attention by a kernel of the Hugging Face Hub, downloaded once, through diffusers' dispatcher."""
    from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    with attention_backend(HUB_KERNEL):
        out: Tensor = dispatch_attention_fn(query, key, value, scale=scale)
    return out.transpose(1, 2)


def _refuse_hub(request: DenseRequest, is_named: bool) -> str | None:
    from diffusers.utils import is_kernels_available

    if request.rule != "all":
        return "the kernel takes no mask"
    if request.device.type != "cuda":
        return f"the inputs are on {request.device.type}, the kernel is for CUDA"
    if request.dtype not in (torch.float16, torch.bfloat16):
        return f"the inputs are {request.dtype}, the kernel is for float16 and bfloat16"
    return None if is_kernels_available() else "the package kernels is not installed"


#: In order of preference; "auto" never comes to those after the formula, which runs everywhere.
BACKENDS = (
    Backend("sdpa", "any device", sdpa, _refuse_sdpa),
    Backend("grouped", "spans", grouped, _refuse_grouped),
    Backend("reference", "memory for all scores", reference),
    Backend("flex", "a GPU that PyTorch compiles for, or a CPU without gradients", flex, _refuse_flex),
    Backend("xformers", "xformers with an operator for these inputs", xformers, _refuse_xformers),
    Backend("hub", "CUDA, half precision, no mask, the package kernels", hub, _refuse_hub),
)
