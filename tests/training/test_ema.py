from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from hiergen.training.ema import Average


@pytest.mark.parametrize("decay", [0.2, 0.9999])
def test_it_is_the_average_of_diffusers(decay) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    model[1].bias.requires_grad_(False)
    ours = Average(model.parameters(), decay=decay)
    theirs = EMAModel(list(model.parameters()), decay=decay, foreach=True)
    for _ in range(12):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ours.step(model.parameters())
        theirs.step(model.parameters())
    assert ours.updates == theirs.optimization_step
    assert all(torch.equal(a, b) for a, b in zip(ours.shadow, theirs.shadow_params, strict=True))


def test_weights_and_averages_change_places_and_back() -> None:
    model = nn.Linear(3, 2)
    average = Average(model.parameters(), decay=0.5)
    with torch.no_grad():
        model.weight.fill_(7.0)
    before = average.shadow[0].clone()
    with average.applied(model):
        assert torch.equal(model.weight, before)
    assert torch.equal(model.weight, torch.full((2, 3), 7.0))
    assert torch.equal(average.shadow[0], before)
