"""Rounding and values that are not finite."""

from __future__ import annotations

import pytest
import torch

from hiergen.evaluation.protocol import check_finite, quantize


def test_rounding_and_nan() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    values = bytes_.float() / 127.5 - 1
    assert torch.equal(quantize(values, "nearest"), bytes_)
    assert torch.equal(quantize(values, "truncate"), bytes_)
    between = (torch.full((1, 1, 1, 1), 100.7)) / 127.5 - 1
    assert (quantize(between).item(), quantize(between, "truncate").item()) == (101, 100)
    broken = torch.zeros(3, 1, 2, 2)
    broken[1, 0, 0, 1] = float("nan")
    with pytest.raises(ValueError, match="image 41 holds NaN or infinity"):
        check_finite(broken, 40, "image")
