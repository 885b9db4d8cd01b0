from __future__ import annotations

import pytest
import torch

from hiergen.nn.running.modes import evaluating


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluation_mode_ends_with_its_context_even_after_an_error(was_training: bool) -> None:
    model, modes = torch.nn.Sequential(torch.nn.Dropout(0.5)).train(was_training), []
    with pytest.raises(ZeroDivisionError), evaluating(model):
        modes.append([module.training for module in model.modules()] + [1 / 0])
    with evaluating(model):
        modes.append([module.training for module in model.modules()])
    assert modes == [[False, False]]
    assert all(module.training is was_training for module in model.modules())
