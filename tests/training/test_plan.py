from __future__ import annotations

import types

import pytest
import torch

from hiergen.pyramid import LevelSpec
from hiergen.registry import create
from hiergen.training import plan as module
from hiergen.training.optim import OptimConfig, make_optimizer
from hiergen.training.plan import follow_pass, plan_training, training_hours
from hiergen.training.reporting.throughput import flop_counter

#: A preset of every family of models that is trained.
FAMILIES = (
    "restok-tiny",
    "hieratok-tiny",
    "pyramid-vae-tiny",
    "har-tiny",
    "mar-tiny",
    "mar3d-tiny",
    "flow-tiny",
    "titok-tiny",
    "flextok-tiny",
    "maskgit-vq-tiny",
    "maskgit-tiny",
    "rar-tiny",
)


@pytest.mark.parametrize("preset", FAMILIES)
def test_the_plan_without_memory_is_what_a_real_step_takes(preset, monkeypatch) -> None:
    """Operations and what is kept for the backward pass, on the meta device and on real tensors, by the same counters."""
    monkeypatch.setattr(module, "_DRAWS", 1)
    plan = plan_training(preset)
    model = create(preset)
    real = follow_pass(model)
    assert plan.step.flops == real.flops > 0
    assert plan.step.activation_bytes == pytest.approx(real.activation_bytes, rel=0.02)
    optimizer = make_optimizer(model, OptimConfig())
    optimizer.step()
    moments = [t for entry in optimizer.state.values() for key, t in entry.items() if key != "step"]
    assert plan.moment_bytes == sum(t.numel() * t.element_size() for t in moments)
    # What takes no part in this pass has no gradient, but would have one in another.
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.grad is not None)
    assert 0.95 * plan.gradient_bytes < gradients <= plan.gradient_bytes
    assert plan.weight_bytes >= sum(p.numel() * 4 for p in model.parameters())


def test_models_that_are_trained_in_another_way() -> None:
    """The fine stage of a cascade alone reads coarse tokens; sparse attention is counted as the dense one it stands for."""
    assert follow_pass(create("mar3d-tiny").high).flops > follow_pass(create("mar3d-tiny").low).flops
    sizes = {"dim": 32, "depth": 1, "num_heads": 2}
    sparse = create("flow-video-tiny", **sizes, attention={"query_block": 32, "key_block": 16, "rounding_tile": 16})
    assert follow_pass(sparse) == follow_pass(create("flow-video-tiny", **sizes, attention=None))


def test_a_linear_model_by_hand() -> None:
    """12 numbers in, 5 out, one token: 2 * 12 * 5 forward, as much for the weight's gradient; the input is kept."""

    class Linear(torch.nn.Linear):
        specs = (LevelSpec(num_tokens=1, dim=12, vocab_size=None),)
        config = types.MappingProxyType({})
        device = torch.device("cpu")
        generate = None

        def loss(self, pyramid, label, *, rng):
            return {"loss": self(torch.zeros(1, 12)).sum()}

    found = follow_pass(Linear(12, 5))
    assert (found.flops, found.activation_bytes) == (2 * 2 * 12 * 5, 12 * 4)


def test_attention_on_a_cpu_is_counted() -> None:
    """Two products of 6 queries, 6 keys and 8 channels in 3 heads forward; five backward, as scores are computed again."""
    query = torch.randn(1, 3, 6, 8, requires_grad=True)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    product = 2 * 3 * 6 * 6 * 8
    assert counter.get_total_flops() == 7 * product


def test_the_arithmetic_of_a_transformer_is_six_times_parameters_times_tokens() -> None:
    """The field's rule of thumb, which leaves out attention's products and counts embeddings that are looked up. Nothing is allocated."""
    plan = plan_training("har-l", num_gpus=8)
    assert plan.gradient_bytes == 2 * 4 * plan.parameters > 2 * 10**9
    assert plan.step.flops == pytest.approx(6 * plan.parameters * 128, rel=0.15)


def test_the_arithmetic_of_a_published_model_is_what_its_paper_states() -> None:
    """DiT-B/2, which SiT-B is: 23.01 billion multiplications forward (arXiv:2212.09748, its "Gflops"); training takes three times that."""
    assert plan_training("sit-b").step.flops == pytest.approx(3 * 2 * 23.01e9, rel=0.02)


def test_hours_and_bad_values() -> None:
    # 1e12 operations a sample at 100e12 x 0.5 a second: 50 samples a second and GPU.
    assert training_hours(10**12, 360_000, num_gpus=2, peak_tflops=100.0, mfu=0.5) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"mfu is 1\.5 and peak_tflops is 100"):
        training_hours(1, 1, num_gpus=1, peak_tflops=100.0, mfu=1.5)
    with pytest.raises(ValueError, match="num_gpus is 0, expected at least 1"):
        plan_training("har-tiny", num_gpus=0)
    with pytest.raises(ValueError, match="'patches-tiny' is a PatchComponents, which is fitted and not trained"):
        plan_training("patches-tiny")
