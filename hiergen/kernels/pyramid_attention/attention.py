"""The operation with its choice of backend: what users call."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.dispatch import AttentionRequest, choose
from hiergen.kernels.pyramid_attention.backends import dense, flex, gather, reference, triton
from hiergen.kernels.pyramid_attention.config import PSAConfig, psa_preset
from hiergen.kernels.pyramid_attention.plan import PyramidPlan
from hiergen.kernels.pyramid_attention.planning.make_plan import make_plan
from hiergen.kernels.pyramid_attention.triton.operators import key_pyramid

Layout = Literal["bhsd", "bshd"]

#: In order of preference.
BACKENDS = (triton.BACKEND, flex.BACKEND, gather.BACKEND, dense.BACKEND, reference.BACKEND)


def pyramid_sparse_attention(
    q: Float[Tensor, "_ _ _ _"],
    k: Float[Tensor, "_ _ _ _"],
    v: Float[Tensor, "_ _ _ _"],
    *,
    plan: PyramidPlan | None = None,
    config: PSAConfig | str | None = None,
    layout: Layout = "bhsd",
    is_causal: bool = False,
    key_offset: int = 0,
    key_mask: Bool[Tensor, "b n"] | None = None,
    scale: float | None = None,
    rng: torch.Generator | None = None,
    backend: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return pyramid sparse attention: important key blocks in full, others averaged over 2, 4 or 8 keys, the rest not at all.

    Args:
        q: (b, h, queries, k), or (b, queries, h, k) with layout "bshd". Any strides; channels next to each other.
        k: (b, g, keys, k) or (b, keys, g, k); `g` divides `h`.
        v: Same shape as `k`.
        plan: What to read at which pool, from `make_plan`. It has its own causality and offset.
        config: How to make the plan, or a preset's name; "default" if neither is given.
        layout: Order of the axes of the inputs and the output.
        is_causal: Causality of the plan made from `config`; see `PyramidPlan`.
        key_offset: Offset of the plan made from `config`; see `PyramidPlan`.
        key_mask: True for real keys.
        scale: Factor of the products q · k, k^-1/2 by default.
        rng: Draws the samples of the "sampled" estimators.
        backend: "auto", "triton", "flex", "gather" or "reference" follow the plan; "dense" makes none and is exact. "auto" takes
            "dense" on a CPU where `backends/dense.py` knows it to be faster, unless a plan, a mask or the log-sum-exp is asked for.
        return_lse: Whether to return also the natural log-sum-exp of the scores, (b, h, queries).

    Raises:
        ValueError: If shapes do not fit each other or the plan, or both plan and config are given.
        RuntimeError: If the named backend cannot run here.

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025.
    """
    if layout not in ("bhsd", "bshd"):
        raise ValueError(f"layout is {layout!r}, expected 'bhsd' or 'bshd'")
    if plan is not None and (config is not None or is_causal or key_offset):
        raise ValueError(
            "plan was given together with config, is_causal or key_offset, which are the plan's own; give one"
        )
    q, k, v = (_heads_first(x, layout) for x in (q, k, v))
    _check_shapes(q, k, v, key_mask)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    settings = config if isinstance(config, PSAConfig) else psa_preset(config or "default")
    only_sparse = {"is_causal": is_causal, "key_mask": key_mask is not None, "return_lse": return_lse}
    cannot, pays = dense.describe(
        q, k, None if plan is not None else settings, [name for name, is_given in only_sparse.items() if is_given]
    )
    request = AttentionRequest(q.device, q.dtype, q.shape[-1], needs_grad, cannot, pays)
    chosen = choose("pyramid_attention", BACKENDS, request, backend)
    if chosen is dense.BACKEND:
        return _heads_first(chosen.run(q, k, v, scale=scale), layout)
    shared: dict[str, Any] = {}
    if plan is None:
        if chosen is triton.BACKEND and key_mask is None and settings.rules.tail == "exact":
            # Planning and attention read the same pyramid.
            with_cosines = settings.similarity is not None
            shared["pyramid"] = key_pyramid(k, v, settings.key_block, tail="exact", with_cosines=with_cosines)
        plan = make_plan(
            q, k, settings, is_causal=is_causal, key_offset=key_offset, key_mask=key_mask, rng=rng, **shared
        )
    _check_plan(q, k, plan, key_mask)
    out, lse = chosen.run(q, k, v, plan, scale=scale, key_mask=key_mask, **shared)
    out = _heads_first(out, layout)
    return (out, lse) if return_lse else out


class PyramidSparseAttention(nn.Module):
    """`pyramid_sparse_attention` with fixed settings, to put in a model's place for dense attention.

    Args:
        config: Settings or a preset's name.
        layout: Order of the axes of the inputs and the output.
        backend: See `pyramid_sparse_attention`.
    """

    def __init__(self, config: PSAConfig | str = "default", *, layout: Layout = "bhsd", backend: str = "auto") -> None:
        super().__init__()
        self.config = psa_preset(config) if isinstance(config, str) else config
        self.layout: Layout = layout
        self.backend = backend

    def forward(
        self,
        q: Float[Tensor, "_ _ _ _"],
        k: Float[Tensor, "_ _ _ _"],
        v: Float[Tensor, "_ _ _ _"],
        *,
        plan: PyramidPlan | None = None,
        key_mask: Bool[Tensor, "b n"] | None = None,
        step: int | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Return attention; dense while the sampling step is one of the first `config.warmup_steps`.

        Args:
            plan: Replaces the plan that the settings would make.
            step: Sampling step, counted from 0; None for no warm-up.
        """
        if step is not None and step < self.config.warmup_steps:
            return self._dense(q, k, v, key_mask)
        out = pyramid_sparse_attention(
            q, k, v, plan=plan, config=self.config if plan is None else None, layout=self.layout,
            key_mask=key_mask, rng=rng, backend=self.backend,
        )  # fmt: skip
        assert isinstance(out, Tensor)
        return out

    def extra_repr(self) -> str:
        return f"{self.config}, layout={self.layout!r}, backend={self.backend!r}"

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
        q, k, v = (_heads_first(x, self.layout) for x in (q, k, v))
        return _heads_first(dense.dense_attention(q, k, v, key_mask=key_mask), self.layout)


def _heads_first(x: Tensor, layout: Layout) -> Tensor:
    """Return (b, h, n, k) of a tensor in `layout`, or the other way round: the swap is its own inverse."""
    return x.transpose(1, 2) if layout == "bshd" else x


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, key_mask: Any) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}, expected 4-D, k and v alike"
        )
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in batch or head size")
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads and k {k.shape[1]}, expected a divisor")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}, expected one dtype")
    if key_mask is not None and tuple(key_mask.shape) != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"key_mask has shape {tuple(key_mask.shape)}, expected (batch, keys) = ({k.shape[0]}, {k.shape[2]})"
        )


def _check_plan(q: Tensor, k: Tensor, plan: PyramidPlan, key_mask: Any) -> None:
    if (plan.num_queries, plan.num_keys) != (q.shape[2], k.shape[2]):
        raise ValueError(
            f"the plan is for {plan.num_queries} queries and {plan.num_keys} keys, the inputs hold {q.shape[2]} and {k.shape[2]}"
        )
    if plan.pools.device != q.device:
        raise ValueError(f"the plan is on {plan.pools.device}, the queries on {q.device}")
    batch, heads = plan.pools.shape[:2]
    if batch not in (1, q.shape[0]) or heads not in (1, q.shape[1]):
        raise ValueError(
            f"the plan is for batch {batch} and {heads} heads, the queries have {q.shape[0]} and {q.shape[1]}"
        )
    if key_mask is not None and plan.tail == "replicate":
        raise ValueError(
            "key_mask was given with a plan whose tail is 'replicate', which counts repeated keys; use 'exact'"
        )
