from __future__ import annotations

import pytest
import torch

from hiergen.nn.modes import evaluating, without_autocast


def test_operations_keep_their_dtype_inside_autocast() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with without_autocast(x.device):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_any_device_type_is_accepted(device: str) -> None:
    with without_autocast(torch.device(device)):
        assert torch.empty(2, device=device).dtype == torch.float32


@pytest.mark.parametrize("was_training", [True, False])
def test_evaluation_mode_ends_with_its_context_even_after_an_error(was_training: bool) -> None:
    model, modes = torch.nn.Sequential(torch.nn.Dropout(0.5)).train(was_training), []
    with pytest.raises(ZeroDivisionError), evaluating(model):
        modes.append([module.training for module in model.modules()] + [1 / 0])
    with evaluating(model):
        modes.append([module.training for module in model.modules()])
    assert modes == [[False, False]]
    assert all(module.training is was_training for module in model.modules())
