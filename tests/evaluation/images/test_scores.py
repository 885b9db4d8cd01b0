"""Diagnostics of tokens."""

from __future__ import annotations

import numpy as np
import torch

from hiergen.evaluation.images.scores import describe_tokens
from hiergen.evaluation.report import render
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create


def test_diagnostics_of_tokens_that_hardly_differ() -> None:
    """Copies have no distance to a neighbor and equal ends no path: these are left out or not finite, and nothing fails."""
    tokenizer = create("hieratok-tiny").eval()
    spec = tokenizer.specs[0]
    same = TokenPyramid((torch.zeros(8, spec.num_tokens, spec.dim),), tokenizer.specs)
    found = describe_tokens(same, tokenizer, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    assert {"neighbor_spread", "spatial_autocorrelation"}.isdisjoint(found)
    assert np.isnan(found["interpolation_detour"])
    report = {"kind": "rfid", "what": "a test", "metrics": {}, "tokens": {**found, "interpolation_detour": None}}
    assert "interpolation detour: not finite" in render({**report, "environment": {}, "wall_time_s": 1})
    distinct = TokenPyramid((torch.randn(8, spec.num_tokens, spec.dim),), tokenizer.specs)
    assert {"neighbor_spread", "spatial_autocorrelation"} <= set(describe_tokens(distinct, tokenizer, None))
