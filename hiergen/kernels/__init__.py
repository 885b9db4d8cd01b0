"""Operations with a choice of backend: dense and level-masked attention, pyramid sparse attention.

A name is imported from its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_OF_PYRAMID_ATTENTION = (
    "OfficialRules",
    "PSAConfig",
    "PyramidPlan",
    "PyramidSparseAttention",
    "make_plan",
    "psa_preset",
    "pyramid_sparse_attention",
    "token_order",
)

__all__ = ["pyramid_attention", *_OF_PYRAMID_ATTENTION]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hiergen.kernels' has no attribute {name!r}")
    package = importlib.import_module("hiergen.kernels.pyramid_attention")
    return package if name == "pyramid_attention" else getattr(package, name)
