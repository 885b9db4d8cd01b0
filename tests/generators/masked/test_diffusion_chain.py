from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hiergen.generators.masked.diffusion_chain import (
    HeadSampler,
    add_noise,
    cosine_betas,
    cosine_tables,
    diffusion_loss,
    sampler_coefficients,
    spaced_timesteps,
)

T = 1000


def test_betas_of_the_cosine_schedule() -> None:
    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = cosine_betas(T)
    for i in (0, 1, 500, 998, 999):
        assert float(betas[i]) == pytest.approx(min(1 - abar((i + 1) / T) / abar(i / T), 0.999), rel=1e-12)
    # Numbers that are known of the published schedule.
    assert float(betas[0]) == pytest.approx(4.13e-5, rel=2e-3)
    assert float(betas[-1]) == 0.999
    assert float(cosine_tables(T).abar[-1]) == pytest.approx(2.43e-9, rel=2e-3)


def test_posterior_is_the_product_of_its_two_gaussians() -> None:
    """q(x_{t-1} | x_t, x_0) is q(x_t | x_{t-1}) q(x_{t-1} | x_0), normalized: precisions add, means weigh by precision."""
    tables, betas = cosine_tables(T), cosine_betas(T)
    for t in (1, 2, 300, 999):
        beta, previous = float(betas[t]), float(tables.abar_previous[t])
        precision = (1 - beta) / beta + 1 / (1 - previous)
        assert float(tables.log_variance_min[t]) == pytest.approx(-math.log(precision), rel=1e-9)
        assert float(tables.mean_xt[t]) == pytest.approx(math.sqrt(1 - beta) / beta / precision, rel=1e-9)
        assert float(tables.mean_x0[t]) == pytest.approx(math.sqrt(previous) / (1 - previous) / precision, rel=1e-9)
        assert float(tables.log_variance_max[t]) == pytest.approx(math.log(beta), rel=1e-12)
    assert tables.log_variance_min[0] == tables.log_variance_min[1]


def _case(timesteps: list[int], channels: int = 3) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(len(timesteps), channels, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.tensor(timesteps)
    output = 0.3 * torch.randn(len(timesteps), 2 * channels, generator=rng, dtype=torch.float64)
    return output, x0, add_noise(x0, t, noise, num_timesteps=T), t, noise


def test_noisy_token_has_the_schedules_signal_and_noise() -> None:
    _, x0, x_t, t, noise = _case([0, 400, 999])
    for row, step in enumerate(t.tolist()):
        abar = math.prod(1 - b for b in cosine_betas(T)[: step + 1].tolist())
        expected = math.sqrt(abar) * x0[row] + math.sqrt(1 - abar) * noise[row]
        torch.testing.assert_close(x_t[row], expected, rtol=1e-10, atol=1e-12)


def test_bound_is_the_divergence_of_the_two_gaussians_in_bits() -> None:
    output, x0, x_t, t, noise = _case([1, 17, 500, 999])
    mse, bound = diffusion_loss(output, x0, x_t, t, noise, num_timesteps=T)
    betas, abar = cosine_betas(T), cosine_tables(T).abar
    for row, step in enumerate(t.tolist()):
        beta, now, before = float(betas[step]), float(abar[step]), float(abar[step - 1])
        low, high = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
        eps, v = output[row].chunk(2)
        guess = (x_t[row] - math.sqrt(1 - now) * eps) / math.sqrt(now)

        def mean(x: Tensor, row: int = row, beta: float = beta, now: float = now, before: float = before) -> Tensor:
            given = math.sqrt(before) * beta * x + math.sqrt(1 - beta) * (1 - before) * x_t[row]
            return given / (1 - now)

        spread = torch.exp(0.5 * (low + (v + 1) / 2 * (high - low)))
        true = torch.distributions.Normal(mean(x0[row]), math.exp(low / 2))
        ours = torch.distributions.Normal(mean(guess), spread)
        divergence = torch.distributions.kl_divergence(true, ours).mean() / math.log(2)
        torch.testing.assert_close(bound[row], divergence, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(mse[row], ((noise[row] - eps) ** 2).mean())


def test_first_step_is_the_likelihood_of_a_bin() -> None:
    output, x0, x_t, t, noise = _case([0, 0, 0])
    # One channel beyond each end of the pixel range, where the bin is open.
    x0 = torch.tensor([[-1.0, 1.0, 0.2], [0.5, -0.3, 0.0], [2.0, -2.0, 0.9]], dtype=torch.float64)
    x_t = add_noise(x0, t, noise, num_timesteps=T)
    _, bound = diffusion_loss(output, x0, x_t, t, noise, num_timesteps=T)
    tables = cosine_tables(T)
    now, low, high = float(tables.abar[0]), float(tables.log_variance_min[1]), math.log(float(cosine_betas(T)[0]))

    def phi(a: float) -> float:
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))

    for row in range(3):
        total = 0.0
        for channel in range(3):
            eps, v, x = float(output[row, channel]), float(output[row, 3 + channel]), float(x0[row, channel])
            # The posterior at the first step is x_0 itself.
            guess = (float(x_t[row, channel]) - math.sqrt(1 - now) * eps) / math.sqrt(now)
            inverse = math.exp(-0.5 * (low + (v + 1) / 2 * (high - low)))
            upper, lower = phi(inverse * (x - guess + 1 / 255)), phi(inverse * (x - guess - 1 / 255))
            probability = upper if x < -0.999 else 1 - lower if x > 0.999 else upper - lower
            total -= math.log(max(probability, 1e-12)) / math.log(2) / 3
        assert float(bound[row]) == pytest.approx(total, rel=1e-8)


def test_bound_trains_the_variance_only() -> None:
    output, x0, x_t, t, noise = _case([0, 3, 700])
    output.requires_grad_()
    _, bound = diffusion_loss(output, x0, x_t, t, noise, num_timesteps=T)
    (gradient,) = torch.autograd.grad(bound.sum(), output)
    assert gradient[:, :3].abs().max() == 0
    assert (gradient[:, 3:].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("steps", [10, 25, 50, 64, 100, 250])
def test_timesteps_are_those_of_diffusers(steps: int) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(T, beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    assert spaced_timesteps(steps, T, "linspace") == tuple(reversed(scheduler.timesteps.tolist()))


def test_leading_timesteps_have_a_whole_stride() -> None:
    assert spaced_timesteps(4, T, "leading") == (0, 250, 500, 750)
    assert spaced_timesteps(T, T, "leading") == tuple(range(T))
    with pytest.raises(ValueError, match="head_steps is 999: no whole stride over 1000 steps gives so many"):
        spaced_timesteps(999, T, "leading")
    with pytest.raises(ValueError, match="head_steps is 1001, expected 2 to 1000"):
        spaced_timesteps(1001, T, "linspace")


def test_the_last_step_adds_no_noise_and_returns_the_guess() -> None:
    for sampler in (HeadSampler("ddpm", 10), HeadSampler("ddim", 10, eta=1.0)):
        steps = sampler_coefficients(sampler, T)
        assert [step.timestep for step in steps] == sorted((step.timestep for step in steps), reverse=True)
        last, tables = steps[-1], cosine_tables(T)
        assert last.sigma == 0
        assert last.x_scale == pytest.approx(float(tables.x0_from_xt[0]))
        assert last.eps_scale == pytest.approx(-float(tables.x0_from_eps[0]))
        assert all(step.sigma > 0 for step in steps[:-1])


def test_temperature_scales_the_noise_of_the_steps() -> None:
    for kind, eta in (("ddpm", 0.0), ("ddim", 0.7)):
        one = sampler_coefficients(HeadSampler(kind, 10, eta=eta), T)
        half = sampler_coefficients(HeadSampler(kind, 10, eta=eta, temperature=0.5), T)
        assert [step.sigma for step in half] == pytest.approx([0.5 * step.sigma for step in one])
        assert [step.x_scale for step in half] == [step.x_scale for step in one]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kind", "euler", "kind is 'euler', expected 'ddpm' or 'ddim'"),
        ("spacing", "log", "spacing is 'log', expected 'linspace' or 'leading'"),
    ],
)
def test_unknown_samplers_are_refused(name: str, value: str, message: str) -> None:
    sampler = HeadSampler()
    # Around the constructor, where the type checker of the tests would refuse it first.
    object.__setattr__(sampler, name, value)
    with pytest.raises(ValueError, match=message):
        sampler.__post_init__()
