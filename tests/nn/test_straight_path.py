from __future__ import annotations

import math

import pytest
import torch
from torchdiffeq import odeint

from hiergen.generators.flow.sampling import FlowSettings
from hiergen.nn.straight_path import (
    draw_times,
    integrate,
    interpolate,
    time_grid,
    velocity_losses,
)


def test_grid_is_lightningdits() -> None:
    times = time_grid(249, 0.3)
    assert len(times) == 250
    assert times[0] == 0
    assert times[-1] == 1
    # Spec, section 4.4: first step 0.00121, last 0.0133, 73 of 250 points below 0.11.
    assert times[1] - times[0] == pytest.approx(0.00121, abs=5e-6)
    assert times[-1] - times[-2] == pytest.approx(0.0133, abs=5e-5)
    assert sum(time < 0.11 for time in times) == 73
    assert time_grid(4) == [0, 0.25, 0.5, 0.75, 1]
    assert time_grid(2, 0.3)[1] == pytest.approx(0.3 * 0.5 / (1 - 0.7 * 0.5))


@pytest.mark.parametrize(("solver", "theirs"), [("euler", "euler"), ("heun", "heun2")])
def test_solvers_take_torchdiffeqs_steps(solver: str, theirs: str) -> None:
    matrix = torch.randn(5, 5, dtype=torch.float64)
    start = torch.randn(3, 5, dtype=torch.float64)
    times = time_grid(7, 0.4)

    def slope(state: torch.Tensor, time: float) -> torch.Tensor:
        return torch.sin(state @ matrix) * (1 + time) + time**2

    expected = odeint(
        lambda time, state: slope(state, float(time)),
        start,
        torch.tensor(times, dtype=torch.float64),
        method=theirs,
    )[-1]
    torch.testing.assert_close(integrate(slope, start, times, solver=solver), expected, rtol=1e-12, atol=1e-12)


def test_shifted_euler_steps_are_diffusers() -> None:
    """Their noise level is 1 - t and their model predicts the slope along it; shifting t by s shifts the level by 1 / s."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    matrix, start = torch.randn(5, 5), torch.randn(3, 5)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1 / 0.3)
    scheduler.set_timesteps(sigmas=[1 - step / 12 for step in range(12)])
    x = start
    for t, level in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        x = scheduler.step(-torch.sin(x @ matrix) * (2 - level), t, x).prev_sample
    ours = integrate(lambda state, time: torch.sin(state @ matrix) * (1 + time), start, time_grid(12, 0.3))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_solvers_have_their_order() -> None:
    # x' = x + t has the solution 2 e^t - 1 - t for x(0) = 1.
    exact = 2 * math.e - 2

    def error(solver: str, steps: int) -> float:
        one = torch.ones((), dtype=torch.float64)
        return abs(float(integrate(lambda x, t: x + t, one, time_grid(steps), solver=solver)) - exact)

    for solver, order in (("euler", 1), ("heun", 2)):
        assert math.log2(error(solver, 64) / error(solver, 128)) == pytest.approx(order, abs=0.05)


def test_the_diffusion_has_the_flows_marginals() -> None:
    """Data of known mean and deviation, whose velocity is known: the end is distributed as the data, whatever path led there."""
    mean, deviation, rng = 2.0, 0.5, torch.Generator().manual_seed(0)

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        # E[data - noise | x] of jointly normal numbers; x = t data + (1 - t) noise.
        variance = t**2 * deviation**2 + (1 - t) ** 2
        covariance = t * deviation**2 - (1 - t)
        return mean + covariance / variance * (x - t * mean)

    def draw() -> torch.Tensor:
        return torch.randn(20_000, generator=rng, dtype=torch.float64)

    times = FlowSettings(num_steps=200, solver="sde", timestep_shift=1.0).times()
    half = integrate(velocity, draw(), [time for time in times if time <= 0.5] + [0.5], solver="sde", draw=draw)
    end = integrate(velocity, draw(), times, solver="sde", draw=draw)
    assert float(half.mean()) == pytest.approx(0.5 * mean, abs=0.02)
    assert float(half.std()) == pytest.approx(math.sqrt(0.25 * deviation**2 + 0.25), abs=0.02)
    assert float(end.mean()) == pytest.approx(mean, abs=0.02)
    assert float(end.std()) == pytest.approx(deviation, abs=0.02)


def test_steps_of_the_diffusion_by_its_score() -> None:
    start, noise = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    settings = FlowSettings(num_steps=3, solver="sde", timestep_shift=1.0, last_step=0.1)
    assert settings.times() == [0, pytest.approx(0.45), pytest.approx(0.9), 1]
    draws, steps = [], []

    def note(step: int, state: torch.Tensor) -> torch.Tensor:
        steps.append(step)
        return state

    def draw() -> torch.Tensor:
        draws.append(noise * (len(draws) + 1))
        return draws[-1]

    made = integrate(lambda x, t: x.cos() + t, start, settings.times(), solver="sde", draw=draw, after_step=note)
    x = start
    for t, width, fresh in ((0.0, 0.45, noise), (0.45, 0.45, 2 * noise), (0.9, 0.1, 0 * noise)):
        v = x.cos() + t
        noise_part = x - t * v
        score = -noise_part / (1 - t)
        x = x + (v + (1 - t) * score) * width + (2 * (1 - t) * width) ** 0.5 * fresh
    torch.testing.assert_close(made, x)
    assert (len(draws), steps) == (2, [0, 1, 2])
    with pytest.raises(ValueError, match="draw is None, expected a source of noise: solver is 'sde'"):
        integrate(lambda x, t: x, start, settings.times(), solver="sde")


def test_number_of_calls_and_reports() -> None:
    for solver, calls_per_step in (("euler", 1), ("heun", 2)):
        calls, steps = [], []

        def slope(state: torch.Tensor, time: float, calls: list[float] = calls) -> torch.Tensor:
            calls.append(time)
            return state

        def note(step: int, state: torch.Tensor, steps: list[int] = steps) -> torch.Tensor:
            steps.append(step)
            return state + 1 if step == 248 else state

        end = integrate(slope, torch.ones(()), time_grid(249), solver=solver, after_step=note)
        plain = integrate(slope, torch.ones(()), time_grid(249), solver=solver)
        assert float(end) == pytest.approx(float(plain) + 1)
        del calls[249 * calls_per_step :]
        assert len(calls) == 249 * calls_per_step
        assert steps == list(range(249))


def test_losses_by_hand_with_gradients() -> None:
    prediction = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 4, dtype=torch.float64)
    mse, cosine = velocity_losses(prediction, target)
    (mse + cosine).backward()

    witness = prediction.detach().clone().requires_grad_()
    squared = sum((witness[b, n, c] - target[b, n, c]) ** 2 for b in range(2) for n in range(3) for c in range(4)) / 24
    direction = torch.zeros((), dtype=torch.float64)
    for b in range(2):
        for n in range(3):
            u, v = witness[b, n], target[b, n]
            direction = direction + 1 - (u * v).sum() / ((u**2).sum().sqrt() * (v**2).sum().sqrt())
    (squared + direction / 6).backward()
    torch.testing.assert_close(mse, squared, rtol=1e-12, atol=0)
    torch.testing.assert_close(cosine, direction / 6, rtol=1e-12, atol=0)
    torch.testing.assert_close(prediction.grad, witness.grad, rtol=1e-10, atol=1e-12)


def test_losses_of_half_precision_are_computed_in_float32() -> None:
    prediction, target = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 3, 4)
    mse, cosine = velocity_losses(prediction, target)
    assert mse.dtype == cosine.dtype == torch.float32
    torch.testing.assert_close(mse, (prediction.float() - target).square().mean())


def test_path_and_its_velocity() -> None:
    data, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    time = torch.tensor([0.25, 1.0])
    x_t, velocity = interpolate(data, noise, time)
    torch.testing.assert_close(x_t[0], 0.25 * data[0] + 0.75 * noise[0])
    assert torch.equal(x_t[1], data[1])
    # Along the velocity, what is left of the path leads to the data.
    torch.testing.assert_close(x_t[0] + 0.75 * velocity[0], data[0])


def test_times_follow_their_distributions() -> None:
    device = torch.device("cpu")
    rng = torch.Generator().manual_seed(1)
    uniform = draw_times(20_000, "uniform", device=device, rng=rng)
    quantiles = torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(uniform.quantile(quantiles), quantiles, atol=0.015, rtol=0)
    logistic = draw_times(20_000, "logit_normal", device=device, rng=rng.manual_seed(1))
    # Same numbers underneath: logit of one equals the normal quantile of the other.
    torch.testing.assert_close(torch.logit(logistic), torch.special.ndtri(uniform), atol=1e-4, rtol=1e-3)


def test_repeated_steps_go_back_by_the_forward_process_and_hold_what_is_held() -> None:
    start, times = torch.randn(4, dtype=torch.float64), [0.0, 0.25, 1.0]
    fresh = [torch.randn(4, dtype=torch.float64) for _ in range(4)]
    draws = iter(fresh)
    reports: list[int] = []

    def hold(state: torch.Tensor, time: float) -> torch.Tensor:
        return torch.cat((torch.full((1,), 10 * time, dtype=state.dtype), state[1:]))

    def note(step: int, state: torch.Tensor) -> torch.Tensor:
        reports.append(step)
        return state

    options = {"hold": hold, "repeats": 3, "after_step": note}
    made = integrate(lambda x, t: x.cos() + t, start, times, draw=lambda: next(draws), **options)
    x, noise = start, iter(fresh)
    for early, late in ((0.0, 0.25), (0.25, 1.0)):
        for repeat in range(3):
            if repeat:
                # Data d and noise e at the later time: late d + (1 - late) e. At the earlier one the noise has the deviation 1 - early.
                share = early / late
                x = share * x + ((1 - early) ** 2 - (share * (1 - late)) ** 2) ** 0.5 * next(noise)
                x[0] = 10 * early
            x = x + (late - early) * (x.cos() + early)
            x[0] = 10 * late
    torch.testing.assert_close(made, x)
    assert reports == [0, 1]
    assert next(draws, None) is None
    with pytest.raises(ValueError, match="draw is None, expected a source of noise: repeats is 2"):
        integrate(lambda x, t: x, start, times, repeats=2)
