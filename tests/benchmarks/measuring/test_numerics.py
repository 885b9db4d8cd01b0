"""The check of the kernels, through the interpreter, with kernels that are right and one that is not."""

from __future__ import annotations

import pytest
import torch

from hiergen.benchmarks.measuring import numerics
from hiergen.benchmarks.measuring.numerics import Case, check_attention, check_preparation

pytest.importorskip("triton")

SMALL = Case(20, 40, heads=1, key_heads=1, dim=16, query_block=16, key_block=32, masked=True)
CPU = torch.device("cpu")


def test_right_kernels_hold_and_a_wrong_one_does_not(monkeypatch) -> None:
    found = check_attention(SMALL, torch.float32, CPU)
    assert found["finite"]
    assert found["lse_error"] < 1e-5
    assert all(found[name]["holds"] and found[name]["kernel"] < 1e-5 for name in ("out", "dq", "dk", "dv"))
    right = numerics.triton_attention

    def wrong(*args, **options):
        out, lse = right(*args, **options)
        return out * 1.001, lse * float("inf")

    monkeypatch.setattr(numerics, "triton_attention", wrong)
    found = check_attention(SMALL, torch.float32, CPU)
    assert not any(found[name]["holds"] for name in ("out", "dq", "dk", "dv"))
    assert found["lse_error"] is None


def test_planning_is_the_plain_one() -> None:
    found = check_preparation(SMALL, torch.float32, CPU)
    assert found["equal_pools"] == 1
    assert found["equal_lists"]
    assert found["scores_error"] < 1e-5
    assert found["pyramid_error"] < 1e-6
