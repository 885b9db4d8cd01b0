"""Dense and level-masked attention behind one call; PSA is beside it in `pyramid_attention`.

Letters: `b` batch, `h` heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def attention(
    query: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n k"],
    *,
    mask: Bool[Tensor, "q n"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h q k"]:
    """Return softmax(scale query key^T) value.

    Args:
        mask: True where a query may see a key; None for all. A row without any True is not allowed.
        scale: Factor of the scores; None is 1 / sqrt(k).
        backend: "sdpa" is PyTorch's fused attention, "reference" the plain formula. "auto" takes the former, but for training in
            bfloat16 on a CPU on up to 512 keys the latter, whose backward pass takes a fifth of the time there.

    Raises:
        ValueError: If `backend` is unknown.
    """
    if backend == "auto":
        backend = "reference" if _is_slow_fused(query, key) else "sdpa"
    if backend == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    if backend == "reference":
        return _reference(query, key, value, mask, 1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    raise ValueError(f"backend is {backend!r}, expected 'auto', 'reference' or 'sdpa'")


def grouped_attention(
    query: Float[Tensor, "b h n k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n k"],
    *,
    spans: Iterable[tuple[int, int]],
    key_spans: Iterable[tuple[int, int]] | None = None,
) -> Float[Tensor, "b h n k"]:
    """Return block-causal attention without a mask: one call per group, with the keys up to the group's end. Exact.

    Args:
        spans: `(start, end)` of each group in order (`BlockCausalMask.spans`): queries start:end see keys :end.
        key_spans: `(start, end)` of the keys that each group sees; by default all keys up to the group's end.
    """
    call: Callable[..., Tensor] = F.scaled_dot_product_attention
    spans = list(spans)
    seen = [(0, end) for _, end in spans] if key_spans is None else key_spans
    return torch.cat(
        [call(query[:, :, a:z], key[:, :, i:j], value[:, :, i:j]) for (a, z), (i, j) in zip(spans, seen, strict=True)],
        dim=2,
    )


def _is_slow_fused(query: Tensor, key: Tensor) -> bool:
    trains = torch.is_grad_enabled() and query.requires_grad
    return trains and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= 512


def _reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    scores = scale * (query @ key.transpose(-1, -2))
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(dim=-1) @ value
