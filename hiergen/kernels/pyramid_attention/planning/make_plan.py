"""From queries and keys to a plan: importance, assignment, then the rules that override it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.kernels.pyramid_attention.config import PSAConfig
from hiergen.kernels.pyramid_attention.plan import PyramidPlan, Span
from hiergen.kernels.pyramid_attention.planning.assignment import assign_pools
from hiergen.kernels.pyramid_attention.planning.importance import ImportanceRequest, estimate_importance
from hiergen.kernels.pyramid_attention.planning.lists import with_lists
from hiergen.kernels.pyramid_attention.pooling import KeyPyramid, similarity_cap


@torch.no_grad()
def make_plan(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    config: PSAConfig,
    *,
    is_causal: bool = False,
    key_offset: int = 0,
    key_mask: Bool[Tensor, "b n"] | None = None,
    rng: torch.Generator | None = None,
    pyramid: KeyPyramid | None = None,
) -> PyramidPlan:
    """Return the plan for these queries and keys, lists filled.

    Rules after the assignment, in order:

    1. A row whose quota comes to no whole block reads what `empty_rows` says.
    2. Text is read in full and reads in full.
    3. A causal plan reads nothing above the diagonal, and the blocks on it and the first `sink_blocks` in full.
    4. No block is read coarser than `similarity_cap` allows.

    Args:
        is_causal: See `PyramidPlan`.
        key_offset: See `PyramidPlan`.
        key_mask: True for real keys.
        rng: Draws the samples of the "sampled" estimators.
        pyramid: The pyramid of these keys, with exact tail and without mask, if it has been built already: the plan uses its
            means and cosines.
    """
    request = ImportanceRequest(
        query_block=config.query_block, key_block=config.key_block, is_causal=is_causal, key_offset=key_offset,
        key_mask=key_mask, sample_fraction=config.sample_fraction, rng=rng, stride=config.stride,
        keys_by_eight=None if pyramid is None else pyramid.keys_by_eight,
    )  # fmt: skip
    return plan_from_scores(
        estimate_importance(config.importance, q, k, request),
        q.shape[2],
        k,
        config,
        is_causal=is_causal,
        key_offset=key_offset,
        pyramid=pyramid,
    )


@torch.no_grad()
def plan_from_scores(
    scores: Float[Tensor, "b h i j"],
    num_queries: int,
    k: Float[Tensor, "b g n k"],
    config: PSAConfig,
    *,
    is_causal: bool = False,
    key_offset: int = 0,
    pyramid: KeyPyramid | None = None,
) -> PyramidPlan:
    """Return the plan for given block scores; `make_plan` with scores of any origin."""
    num_keys = k.shape[2]
    plan = PyramidPlan(
        torch.zeros(scores.shape, dtype=torch.uint8, device=scores.device),
        num_queries, num_keys, config.query_block, config.key_block, is_causal, key_offset, config.rules.tail,
    )  # fmt: skip
    visible = plan.visible_blocks()
    plan = dataclasses.replace(plan, pools=assign_pools(scores, config, visible=visible if is_causal else None))
    if config.mode == "quota" and config.rules.empty_rows == "best_block" and not is_causal:
        plan = _read_best_where_empty(plan, scores)
    plan = plan.force_full(keys=_text_span(config, num_keys), queries=_text_span(config, num_queries))
    if is_causal:
        plan = _apply_causal_rules(plan, visible, config.sink_blocks)
    if config.similarity is not None:
        if pyramid is None:
            cap = similarity_cap(k, config.key_block, config.similarity)
        else:
            cap = pyramid.similarity_cap(config.key_block, config.similarity)
        cap = cap.repeat_interleave(scores.shape[1] // k.shape[1], dim=1)[:, :, None]
        plan = dataclasses.replace(plan, pools=torch.minimum(plan.pools, cap))
    return with_lists(plan)


def _read_best_where_empty(plan: PyramidPlan, scores: Tensor) -> PyramidPlan:
    """Give each empty row its best block (lowest index on ties); its output would otherwise silently be zero."""
    is_empty = (plan.pools == 0).all(dim=-1, keepdim=True)
    is_best = torch.zeros_like(plan.pools, dtype=torch.bool).scatter_(-1, scores.argmax(dim=-1, keepdim=True), True)
    return dataclasses.replace(plan, pools=plan.pools.masked_fill(is_empty & is_best, 1))


def _text_span(config: PSAConfig, length: int) -> Iterable[Span]:
    if config.text_tokens == 0:
        return ()
    count = min(config.text_tokens, length)
    return ((0, count),) if config.text_at == "start" else ((length - count, length),)


def _apply_causal_rules(plan: PyramidPlan, visible: Tensor, sink_blocks: int) -> PyramidPlan:
    columns = torch.arange(plan.pools.shape[3], device=plan.pools.device)
    seen = columns < visible[:, None]
    diagonal = seen & (columns >= plan.unmasked_blocks()[:, None])
    pools = plan.pools.masked_fill(diagonal | (columns < sink_blocks), 1).masked_fill(~seen, 0)
    return dataclasses.replace(plan, pools=pools)
