from __future__ import annotations

import pytest
import torch

from hiergen.losses.adaptive_weight import adaptive_weight


def test_ratio_of_gradients_by_hand() -> None:
    parameter = torch.tensor([3.0, 4.0], requires_grad=True)
    reference = parameter.square().sum()  # gradient (6, 8), norm 10
    other = 2 * parameter.sum()  # gradient (2, 2), norm sqrt 8
    weight = adaptive_weight(reference, other, parameter)
    assert float(weight) == pytest.approx(10 / (8**0.5 + 1e-4))
    assert not weight.requires_grad
    # The graphs are still there.
    (reference + weight * other).backward()
    torch.testing.assert_close(parameter.grad, torch.tensor([6.0, 8.0]) + 2 * weight)


def test_limits() -> None:
    parameter = torch.ones(1, requires_grad=True)
    unrelated = torch.ones(1, requires_grad=True).sum()
    assert float(adaptive_weight(parameter.sum(), unrelated, parameter)) == pytest.approx(1e4)
    assert float(adaptive_weight(parameter.sum(), unrelated, parameter, maximum=7.0)) == 7.0
    assert float(adaptive_weight(unrelated, parameter.sum(), parameter)) == 0.0
