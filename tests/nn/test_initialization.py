from __future__ import annotations

import pytest
import torch
from torch import nn

from hiergen.nn.initialization import init_truncated_normal, xavier_linears


def test_linear_and_convolutional_layers_are_drawn_and_others_left() -> None:
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.Conv1d(16, 16, 9), nn.Conv2d(16, 16, 5), nn.Conv3d(8, 8, 4)]
    norm, embedding = nn.LayerNorm(4), nn.Embedding(3, 4)
    before = embedding.weight.clone()
    init_truncated_normal(nn.ModuleList([*layers, norm, embedding, nn.Conv2d(2, 2, 1, bias=False)]), std=0.05)
    for layer in layers:
        # Over 2,000 draws: the standard deviation is within 10 % by many standard errors.
        assert layer.weight.std().item() == pytest.approx(0.05, rel=0.1)  # type: ignore[union-attr]
        assert layer.bias.count_nonzero() == 0  # type: ignore[operator,union-attr]
    assert torch.equal(embedding.weight, before)
    assert norm.weight.tolist() == [1.0] * 4


def test_xavier_reaches_linear_layers_alone() -> None:
    linear, norm = nn.Linear(300, 100), nn.LayerNorm(4)
    xavier_linears(nn.Sequential(linear, norm), nn.ReLU())
    bound = (6 / 400) ** 0.5
    assert 0.99 * bound < linear.weight.abs().max().item() <= bound
    assert linear.bias.count_nonzero() == 0
    assert norm.weight.tolist() == [1.0] * 4
