from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from hiergen.convert import level_ar as convert_har
from hiergen.convert import restok as convert_restok
from hiergen.registry import create
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.optim import decays, learning_rate, make_optimizer
from hiergen.training.tasks.settings import TokenizerTaskConfig


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"task": TokenizerTaskConfig(), "out": "x", "samples": 1100, "batch_size": 10, **changes})


def test_the_learning_rate_by_hand() -> None:
    rate = functools.partial(learning_rate, OptimConfig(lr=1.0, warmup_samples=100), batch_size=10, samples=1100)
    assert rate(0) == pytest.approx(10 / 110)
    assert rate(100) == pytest.approx(1.0)
    assert rate(600) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rate(1100) == pytest.approx(0.1)
    linear = functools.partial(
        learning_rate, OptimConfig(lr=1.0, warmup_samples=100, schedule="linear"), batch_size=10, samples=1100
    )
    assert [linear(100), linear(150)] == [1.0, 1.0]
    assert linear(720) == pytest.approx(0.1 + 0.9 * 0.38 / 0.95)
    assert linear(1100) == pytest.approx(0.1)
    constant = OptimConfig(lr=0.5, schedule="constant")
    assert learning_rate(constant, 0, batch_size=10, samples=1100) == 0.5
    assert learning_rate(constant, 1090, batch_size=10, samples=1100) == 0.5


def test_only_matrices_outside_the_list_are_decayed() -> None:
    module = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm": nn.LayerNorm(2), "embedding": nn.Embedding(2, 2)})
    assert [name for name, p in module.named_parameters() if decays(name, p)] == ["linear.weight"]
    optimizer = make_optimizer(module, OptimConfig(weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 4]
    more = nn.ModuleDict({"linear": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    optimizer = make_optimizer(more, OptimConfig(no_decay=("head.",)))
    assert optimizer.param_groups[0]["params"] == [more["linear"].weight]


def test_the_same_parameters_are_decayed_as_in_the_official_program() -> None:
    """Its rule on its names, of the tokenizer and of the generator; the codebook is an embedding there."""
    words = [
        "ln",
        "bias",
        "latent_tokens",
        "mask_token",
        "embedding",
        "norm",
        "gamma",
        "embed",
        "mask_latent_token",
        "rope",
        "freqs_cis",
    ]
    tokenizer = create("restok-tiny", projection="reinterpreted", merge="even", cnn_shortcut="branch")
    names = {entry.name: entry.official for entry in convert_restok._entries(tokenizer)}
    generator = create("har-tiny", depth=1)
    names |= {ours: (official,) for ours, official in convert_har._official_names(generator).items()}
    decayed = []
    for name, parameter in [*tokenizer.named_parameters(), *generator.named_parameters()]:
        for official in names[name]:
            is_exempt = parameter.ndim < 2 or any(word in official for word in words)
            assert decays(name, parameter) is not is_exempt, (name, official)
        decayed.append(decays(name, parameter))
    assert 20 < sum(decayed) < len(decayed) - 20


def test_a_step_that_found_infinity_changes_nothing() -> None:
    """The guard of the training loop rests on this behavior of PyTorch's fused optimizer."""
    module = nn.Linear(3, 3)
    optimizer = make_optimizer(module, OptimConfig())
    before = [p.detach().clone() for p in module.parameters()]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), None
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples is 0, expected at least 1"),
        ({"batch_size": 6, "accumulation": 4}, "batch_size is 6, expected a multiple of accumulation 4"),
    ],
)
def test_horizons_are_checked(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
    assert config(samples=1101).num_steps == 111


def test_factors_of_the_learning_rate_make_groups_of_their_own() -> None:
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    optimizer = make_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.3), multipliers={"head": 3.0, "body": 0.5})
    found = [(group.get("multiplier"), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [
        (0.5, 0.05, 0.3), (0.5, 0.05, 0.0), (None, 0.1, 0.3), (None, 0.1, 0.0), (3.0, pytest.approx(0.3), 0.3), (3.0, pytest.approx(0.3), 0.0),
    ]  # fmt: skip
    assert optimizer.param_groups[2]["params"] == [module["header"].weight]
