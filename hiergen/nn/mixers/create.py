"""Mixers by name, for configs and command lines."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from hiergen.config import nearest
from hiergen.nn.mixers.base import TokenMixer

#: Every mixer by name: its file in this folder, and its class.
MIXERS: dict[str, tuple[str, str]] = {
    "none": ("basic", "NoMixer"),
    "depthwise": ("basic", "DepthwiseMixer"),
    "attention": ("basic", "AttentionMixer"),
    "window": ("basic", "WindowMixer"),
    "neighborhood": ("neighborhood", "NeighborhoodMixer"),
    "linear": ("linear_attention", "LinearMixer"),
    "gated_conv": ("gated_conv", "GatedConvMixer"),
    "hyena": ("hyena", "HyenaMixer"),
}

#: Mixers that were here once; docs/log.md says why each was taken out.
TAKEN_OUT = ("factorized",)


def create_mixer(name: str, dim: int, *, num_heads: int = 1, **options: Any) -> TokenMixer:
    """Return a mixer with random weights.

    Args:
        name: One of `MIXERS`.
        dim: Channels of a token.
        num_heads: Heads, for mixers that have any.
        options: Options of the mixer's class.

    Raises:
        ValueError: If the name or an option is unknown, the mixer was taken out, or a size does not fit.
    """
    if name in TAKEN_OUT:
        raise ValueError(
            f"the mixer {name!r} was taken out because it did not pay (docs/log.md); known are {', '.join(MIXERS)}"
        )
    if name not in MIXERS:
        raise ValueError(f"unknown mixer {name!r}{nearest(name, MIXERS)}; known are {', '.join(MIXERS)}")
    module, kind_name = MIXERS[name]
    kind = getattr(importlib.import_module(f"hiergen.nn.mixers.{module}"), kind_name)
    known = [key for key in inspect.signature(kind).parameters if key not in ("dim", "num_heads")]
    for key in options:
        if key not in known:
            raise ValueError(f"the mixer {name!r} has no option {key!r}{nearest(key, known)}")
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return kind(dim, num_heads, **options) if kind.has_heads else kind(dim, **options)
