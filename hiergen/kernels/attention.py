"""Dense and level-masked attention behind one call; PSA is beside it in `pyramid_attention`.

Letters: `b` batch, `h` heads, `q` queries, `n` keys, `k` channels per head.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.dense_backends import BACKENDS, DenseRequest
from hiergen.kernels.dispatch import choose
from hiergen.kernels.spans import Spans


def attention(
    query: Float[Tensor, "b h q k"],
    key: Float[Tensor, "b h n k"],
    value: Float[Tensor, "b h n k"],
    *,
    mask: Bool[Tensor, "*rows q n"] | None = None,
    spans: Spans | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h q k"]:
    """Return softmax(scale query key^T) value.

    Args:
        mask: True where a query may see a key, for all samples or with shape `(b, 1, q, n)`; None for all. A row without any True is not allowed.
        spans: The same as runs of keys per group of queries, which every backend but "hub" can use; give one of the two.
        scale: Factor of the scores; None is 1 / sqrt(k).
        backend: "sdpa" is PyTorch's fused attention, "reference" the plain formula, "grouped" one fused call per group of `spans` with its
            keys cut, "flex" FlexAttention with a block mask made once per `spans`, "xformers" its memory-efficient attention, "hub" a
            FlashAttention kernel of the Hugging Face Hub. "auto" takes "sdpa"; on a CPU in float32 "grouped" for spans of 512 keys and
            more in groups of 32 and more, and in bfloat16 on up to 512 keys "reference", which takes half of the time there and its backward
            pass a fifth; with AMX only where there is a backward pass.

    Raises:
        ValueError: If `backend` is unknown, mask and spans are both given, or the spans are of another number of tokens.
        RuntimeError: If the named backend cannot run.
    """
    if mask is not None and spans is not None:
        raise ValueError("mask and spans were both given, expected one of them")
    if spans is not None and (spans.num_queries != query.shape[2] or spans.num_keys > key.shape[2]):
        raise ValueError(
            f"spans are of {spans.num_queries} queries and {spans.num_keys} keys, "
            f"the inputs hold {query.shape[2]} and {key.shape[2]}"
        )
    needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    request = DenseRequest(
        query.device, query.dtype, query.shape[-1], needs_grad, key.shape[2],
        "mask" if mask is not None else "all" if spans is None else "spans", 1 if spans is None else len(spans.queries),
    )  # fmt: skip
    chosen = choose("attention", BACKENDS, request, backend)
    out: Tensor = chosen.run(query, key, value, mask=mask, spans=spans, scale=scale)
    return out
