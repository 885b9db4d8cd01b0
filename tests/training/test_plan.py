from __future__ import annotations

import pytest
import torch

from hiergen.pyramid import LevelSpec
from hiergen.registry import create
from hiergen.training.optim import OptimConfig, make_optimizer
from hiergen.training.plan import follow_pass, plan_training, training_hours


def test_the_plan_without_memory_is_what_a_real_step_takes() -> None:
    preset = "flow-tiny"
    plan = plan_training(preset)
    model = create(preset)
    assert plan.step == follow_pass(model)
    optimizer = make_optimizer(model, OptimConfig())
    optimizer.step()
    moments = [t for entry in optimizer.state.values() for key, t in entry.items() if key != "step"]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert plan.moment_bytes == sum(t.numel() * t.element_size() for t in moments)
    assert plan.gradient_bytes == sum(t.numel() * t.element_size() for t in gradients)
    assert plan.weight_bytes >= sum(p.numel() * 4 for p in model.parameters())
    assert plan_training(preset, num_gpus=2).gradient_bytes == 2 * plan.gradient_bytes


def test_a_linear_model_by_hand() -> None:
    """12 numbers in, 5 out, one token: 2 * 12 * 5 forward, as much for the weight's gradient; the input is kept."""

    class Linear(torch.nn.Linear):
        specs = (LevelSpec(num_tokens=1, dim=12, vocab_size=None),)

        def loss(self, pyramid, label, *, rng):
            return {"loss": self(torch.zeros(1, 12)).sum()}

    found = follow_pass(Linear(12, 5))
    assert (found.flops, found.activation_bytes) == (2 * 2 * 12 * 5, 12 * 4)


def test_a_model_of_a_billion_parameters_takes_no_memory() -> None:
    plan = plan_training("restok-l-128", num_gpus=8)
    assert plan.parameters == 659_693_771
    assert plan.step is None


def test_hours_and_bad_values() -> None:
    # 1e12 operations a sample at 100e12 x 0.5 a second: 50 samples a second and GPU.
    assert training_hours(10**12, 360_000, num_gpus=2, peak_tflops=100.0, mfu=0.5) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"mfu is 1\.5 and peak_tflops is 100"):
        training_hours(1, 1, num_gpus=1, peak_tflops=100.0, mfu=1.5)
    with pytest.raises(ValueError, match="num_gpus is 0, expected at least 1"):
        plan_training("har-tiny", num_gpus=0)
