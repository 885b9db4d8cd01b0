"""Pyramid sparse attention (PSA): key blocks that matter little are read as averages of 2, 4 or 8 keys.

    from hiergen.kernels import pyramid_attention
    out = pyramid_attention(q, k, v, config="wan2.1-14b-balanced", layout="bshd")

The package is callable, so that the operation and its parts share one name: the call is `pyramid_sparse_attention`, the
parts are `pyramid_attention.make_plan` and so on. Inside `torch.compile` call `pyramid_sparse_attention` itself.

`README.md` beside this file holds the mathematics and the measurements.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from hiergen.kernels.pyramid_attention.attention import PyramidSparseAttention, pyramid_sparse_attention
from hiergen.kernels.pyramid_attention.config import PSA_PRESETS, PSAConfig, psa_preset
from hiergen.kernels.pyramid_attention.orders import TokenOrder, token_order
from hiergen.kernels.pyramid_attention.picture import draw_plan
from hiergen.kernels.pyramid_attention.plan import PyramidPlan, full_plan
from hiergen.kernels.pyramid_attention.planning import make_plan, plan_from_scores
from hiergen.kernels.pyramid_attention.reference import reference_attention

__all__ = [
    "PSA_PRESETS",
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


class _CallablePackage(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return `pyramid_sparse_attention(*args, **kwargs)`."""
        return pyramid_sparse_attention(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
