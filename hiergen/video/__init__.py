"""Pyramid sparse attention in video models: diffusers' transformers, and language models of transformers that see video.

`README.md` beside this file shows each.
"""

from __future__ import annotations

from hiergen.video.apply import PyramidAttentionHandle, apply_pyramid_attention, remove_pyramid_attention
from hiergen.video.language_models import register_pyramid_attention
from hiergen.video.statistics import CallStatistics

__all__ = [
    "CallStatistics",
    "PyramidAttentionHandle",
    "apply_pyramid_attention",
    "register_pyramid_attention",
    "remove_pyramid_attention",
]
