"""Muon beside its definition by singular values, and beside PyTorch's own."""

from __future__ import annotations

import copy

import pytest
import torch
import toy
from accelerate import Accelerator
from torch import Tensor, nn

from hiergen.training import step
from hiergen.training.config import OptimConfig
from hiergen.training.muon import Muon, orthogonal
from hiergen.training.optim import make_optimizer


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8), (5, 24), (24, 5), (1, 7), (7, 1)])
def test_all_directions_of_a_matrix_become_about_equal(shape: tuple[int, int]) -> None:
    matrix = draw(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    # In the directions of the matrix itself, and nowhere else.
    inside = left.T @ found @ right.T
    torch.testing.assert_close(left @ inside @ right, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        inside - inside.diagonal().diag(), torch.zeros(len(values), len(values)), rtol=0, atol=1e-5
    )
    assert 0.65 < inside.diagonal().min() <= inside.diagonal().max() < 1.25
    assert not orthogonal(torch.zeros(shape)).any()


def test_steps_are_those_of_pytorch() -> None:
    """Which rounds to bfloat16 on the way, so updates agree to a percent."""
    ours, theirs = (nn.Parameter(draw(12, 5)) for _ in range(2))
    settings = {"lr": 0.05, "weight_decay": 0.3}
    mine = Muon([{"params": [ours], "momentum": 0.9, **settings}])
    reference = torch.optim.Muon([theirs], momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)
    for number in range(4):
        before = ours.detach().clone()
        theirs.data.copy_(before)
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            parameter.grad = draw(12, 5, seed=number + 1)
            optimizer.step()
        torch.testing.assert_close(ours - before, theirs - before, rtol=0.03, atol=0.002)
        # AdamW's updates have entries of about the rate times 0.2 to 0.4; so have these.
        assert 0.1 < (ours - before * (1 - 0.05 * 0.3)).square().mean().sqrt() / 0.05 < 0.3


def test_matrices_are_stepped_by_muon_and_all_else_by_adamw() -> None:
    parts = {"linear": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 3), "embedding": nn.Embedding(4, 4)}
    models = [copy.deepcopy(nn.ModuleDict(parts)) for _ in range(2)]
    for model, name in zip(models, ("muon", "adamw"), strict=True):
        optimizer = make_optimizer(model, OptimConfig(name=name, lr=0.01, weight_decay=0.1, momentum=0.8))
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = draw(*parameter.shape, seed=number)
        optimizer.step()
        found = [group.get("momentum") for group in optimizer.param_groups]
        assert found == ([0.8, None, None] if name == "muon" else [None, None])
    is_equal = [torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True)]
    assert dict(zip(dict(models[0].named_parameters()), is_equal, strict=True)) == {
        "linear.weight": False,
        "linear.bias": True,
        "conv.weight": True,
        "conv.bias": True,
        "embedding.weight": True,
    }


def test_a_step_that_found_infinity_changes_neither_weights_nor_momentum() -> None:
    module = nn.Linear(3, 3)
    optimizer = make_optimizer(module, OptimConfig(name="muon"))
    for value, is_bad in ((1.0, 0.0), (float("nan"), 1.0)):
        before = [p.detach().clone() for p in module.parameters()]
        momentum = optimizer.state[module.weight].get("momentum_buffer", torch.zeros(())).clone()
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf, optimizer.grad_scale = torch.tensor(is_bad), None
        optimizer.step()
        is_kept = [torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
        assert is_kept == [bool(is_bad)] * 2
        assert torch.equal(optimizer.state[module.weight]["momentum_buffer"], momentum) is bool(is_bad)


def test_parameters_that_are_shared_out_are_refused(tmp_path, monkeypatch) -> None:
    config = toy.toy_run(str(tmp_path), optim=OptimConfig(name="muon"), sharding="full")
    monkeypatch.setattr(step, "is_sharded", lambda *_: True)
    with pytest.raises(ValueError, match=r"sharding is 'full', expected 'none' with optim\.name 'muon'"):
        step.Stepper(config, config.task.build(), Accelerator(cpu=True))
