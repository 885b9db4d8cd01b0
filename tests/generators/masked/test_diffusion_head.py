from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.masked import diffusion_head
from hiergen.generators.masked.diffusion_chain import HeadSampler
from hiergen.generators.masked.diffusion_head import DiffusionHead, TimeEmbedding


def _head(*, dtype: torch.dtype = torch.float64) -> DiffusionHead:
    head = DiffusionHead(4, 6, width=16, depth=2).to(dtype).requires_grad_(False)
    for parameter in head.parameters():
        parameter.normal_(std=0.08)
    return head


def _draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_time_is_embedded_as_cosines_then_sines() -> None:
    embedding = TimeEmbedding(8).double()
    t = 37.0
    features = [math.cos(t * 10000 ** (-j / 128)) for j in range(128)]
    features += [math.sin(t * 10000 ** (-j / 128)) for j in range(128)]
    expected = embedding.mlp(torch.tensor(features, dtype=torch.float64))
    torch.testing.assert_close(embedding(torch.tensor(37)), expected, rtol=1e-10, atol=1e-12)


def test_an_untrained_head_predicts_nothing() -> None:
    head = DiffusionHead(4, 6, width=16, depth=2)
    output = head(_draw(5, 4, dtype=torch.float32), torch.arange(5), _draw(5, 6, dtype=torch.float32))
    assert output.shape == (5, 8)
    assert output.abs().max() == 0


def _diffusers_chain(head: DiffusionHead, scheduler: Any, start: Tensor, z: Tensor, *, learned: bool) -> Tensor:
    x, rng = start, torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        output = head(x, torch.full(x.shape[:-1], int(t)), z)
        if learned:
            x = scheduler.step(output, t, x, generator=rng).prev_sample
        else:
            x = scheduler.step(output[..., :4], t, x, eta=0.0).prev_sample
    return x


def test_ancestral_sampling_is_diffusers_ddpm_with_learned_range() -> None:
    from diffusers import DDPMScheduler

    head, z, start = _head(), _draw(3, 6, seed=1), _draw(3, 4, seed=2)
    scheduler = DDPMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    theirs = _diffusers_chain(head, scheduler, start, z, learned=True)
    rng = torch.Generator().manual_seed(7)
    fresh = torch.stack([torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(9)])
    noise = torch.cat((start[None], fresh))[:, None]
    ours = head.sample(z[None], noise, HeadSampler("ddpm", 10))[0]
    # Its tables are float32.
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * float(theirs.abs().max()))


def test_ddim_is_diffusers_ddim_with_the_noise_half() -> None:
    from diffusers import DDIMScheduler

    head, z, start = _head(), _draw(3, 6, seed=1), _draw(3, 4, seed=2)
    scheduler = DDIMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="leading",
        set_alpha_to_one=True,
        clip_sample=False,
    )
    scheduler.set_timesteps(10)
    theirs = _diffusers_chain(head, scheduler, start, z, learned=False)
    noise = torch.cat((start[None], _draw(9, 3, 4, seed=3)))[:, None]
    ours = head.sample(z[None], noise, HeadSampler("ddim", 10, "leading"))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_sampling_equals_a_plain_loop_with_guidance_and_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    head, z, null_z = _head(), _draw(2, 3, 6, seed=1), _draw(2, 3, 6, seed=2)
    noise = _draw(5, 2, 3, 4, seed=3)
    sampler = HeadSampler("ddpm", 5, temperature=0.7)
    betas = [min(1 - _abar((i + 1) / 1000) / _abar(i / 1000), 0.999) for i in range(1000)]
    abar = [math.prod(1 - b for b in betas[: i + 1]) for i in range(1000)]
    visited = [round(i * 999 / 4) for i in range(5)]
    x = noise[0]
    for step, index in enumerate(reversed(range(5))):
        now, before = abar[visited[index]], abar[visited[index - 1]] if index else 1.0
        beta = 1 - now / before
        t = torch.full((2, 3), visited[index])
        (eps, v), (null_eps, _) = head(x, t, z).chunk(2, dim=-1), head(x, t, null_z).chunk(2, dim=-1)
        eps = null_eps + 2.5 * (eps - null_eps)
        guess = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        mean = (math.sqrt(before) * beta * guess + math.sqrt(1 - beta) * (1 - before) * x) / (1 - now)
        x = mean
        if index:
            low, high = math.log(beta * (1 - before) / (1 - now)), math.log(beta)
            x = mean + 0.7 * torch.exp(0.5 * (low + (v + 1) / 2 * (high - low))) * noise[step + 1]
    ours = head.sample(z, noise, sampler, null_z=null_z, guidance=2.5)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9 * float(x.abs().max()))
    # However many steps' modulations are computed at a time.
    monkeypatch.setattr(diffusion_head, "_MODULATION_BUDGET", 1)
    again = head.sample(z, noise, sampler, null_z=null_z, guidance=2.5)
    torch.testing.assert_close(again, ours, rtol=1e-12, atol=1e-12 * float(x.abs().max()))


def _abar(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def test_eta_one_adds_noise_and_eta_zero_reads_none() -> None:
    head, z = _head(), _draw(1, 2, 6)
    one, other = _draw(10, 1, 2, 4, seed=1), _draw(10, 1, 2, 4, seed=2)
    other[0] = one[0]
    still = HeadSampler("ddim", 10)
    assert torch.equal(head.sample(z, one, still), head.sample(z, other, still))
    moving = HeadSampler("ddim", 10, eta=1.0)
    assert not torch.allclose(head.sample(z, one, moving), head.sample(z, other, moving))


def test_autocast_does_not_reach_the_head() -> None:
    head, z, noise = _head(dtype=torch.float32), _draw(1, 2, 6).float(), _draw(4, 1, 2, 4).float()
    t, x = torch.tensor([[3, 900]]), _draw(1, 2, 4, seed=5).float()
    sampler = HeadSampler("ddpm", 4)
    plain = head.sample(z, noise, sampler), head.loss(x, z, t, noise[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head.sample(z, noise, sampler), head.loss(x, z, t, noise[0])
    assert torch.equal(plain[0], cast[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], cast[1], strict=True))


def test_the_head_learns_a_distribution() -> None:
    """Tokens N(mu(z), 0.5^2): the trained head's samples have that mean and that spread."""
    torch.manual_seed(0)
    head = DiffusionHead(1, 2, width=32, depth=1)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=300)
    means, rng = torch.tensor([-1.0, 1.0]), torch.Generator().manual_seed(0)
    for _ in range(300):
        which = torch.randint(2, (256,), generator=rng)
        z = torch.nn.functional.one_hot(which, 2).float()
        x0 = (means[which] + 0.5 * torch.randn(256, generator=rng))[:, None]
        t = torch.randint(1000, (256,), generator=rng)
        mse, bound = head.loss(x0, z, t, torch.randn(256, 1, generator=rng))
        optimizer.zero_grad()
        (mse + bound).mean().backward()
        optimizer.step()
        schedule.step()
    z = torch.eye(2).repeat_interleave(500, dim=0)[None]
    with torch.no_grad():
        samples = head.sample(z, torch.randn(50, 1, 1000, 1, generator=rng), HeadSampler("ddpm", 50, "leading"))[
            0, :, 0
        ]
    # Other seeds come within 0.07 of both.
    for half, mean in zip(samples.split(500), means.tolist(), strict=True):
        assert float(half.mean()) == pytest.approx(mean, abs=0.2)
        assert float(half.std()) == pytest.approx(0.5, abs=0.2)


def test_noise_must_have_one_entry_a_step() -> None:
    with pytest.raises(ValueError, match="noise holds 3 steps, the sampler takes 4"):
        _head().sample(_draw(1, 2, 6), _draw(3, 1, 2, 4), HeadSampler("ddpm", 4))
