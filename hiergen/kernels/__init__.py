"""Operations with a choice of backend: dense and level-masked attention, pyramid sparse attention.

A name is imported from its module when it is first used. `pyramid_attention` is a package that can be called.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "PSAConfig": "hiergen.kernels.pyramid_attention",
    "PyramidPlan": "hiergen.kernels.pyramid_attention",
    "PyramidSparseAttention": "hiergen.kernels.pyramid_attention",
    "make_plan": "hiergen.kernels.pyramid_attention",
    "psa_preset": "hiergen.kernels.pyramid_attention",
    "pyramid_sparse_attention": "hiergen.kernels.pyramid_attention",
    "token_order": "hiergen.kernels.pyramid_attention",
}

__all__ = ["pyramid_attention", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "pyramid_attention":
        return importlib.import_module("hiergen.kernels.pyramid_attention")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hiergen.kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
