"""Pyramid sparse attention (PSA): key blocks that matter little are read as averages of 2, 4 or 8 keys.

    from hiergen.kernels import pyramid_sparse_attention
    out = pyramid_sparse_attention(q, k, v, config="wan2.1-14b-balanced", layout="bshd")

From the bottom up: `pooling` and `plan` say what is read, `triton` holds the kernels and their operators, `planning` makes a
plan, `backends` run it, `attention` chooses among them.

`README.md` beside this file holds the mathematics and the measurements.
"""

from __future__ import annotations

from hiergen.kernels.pyramid_attention.attention import PyramidSparseAttention, pyramid_sparse_attention
from hiergen.kernels.pyramid_attention.backends.reference import reference_attention
from hiergen.kernels.pyramid_attention.config import PSA_PRESETS, OfficialRules, PSAConfig, psa_preset
from hiergen.kernels.pyramid_attention.picture import draw_plan
from hiergen.kernels.pyramid_attention.plan import PyramidPlan, full_plan
from hiergen.kernels.pyramid_attention.planning.make_plan import make_plan, plan_from_scores
from hiergen.kernels.pyramid_attention.planning.orders import TokenOrder, token_order

__all__ = [
    "PSA_PRESETS",
    "OfficialRules",
    "PSAConfig",
    "PyramidPlan",
    "PyramidSparseAttention",
    "TokenOrder",
    "draw_plan",
    "full_plan",
    "make_plan",
    "plan_from_scores",
    "psa_preset",
    "pyramid_sparse_attention",
    "reference_attention",
    "token_order",
]
