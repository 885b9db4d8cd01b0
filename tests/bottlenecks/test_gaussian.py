from __future__ import annotations

import pytest
import torch

from hiergen.bottlenecks.gaussian import GaussianBottleneck, GaussianPosterior


def test_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn(3, 5, 2, dtype=torch.float64), torch.randn(3, 5, 2, dtype=torch.float64)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum() / 3
    torch.testing.assert_close(GaussianPosterior(mean, log_variance).kl(), expected)


def test_samples_and_clamp() -> None:
    mean = torch.tensor([[1.0, 2.0]])
    posterior = GaussianPosterior(mean, torch.tensor([[-100.0, 2.0]]))
    assert posterior.log_variance.tolist() == [[-30, 2]]
    assert GaussianPosterior(mean, torch.full((1, 2), 99.0)).log_variance.tolist() == [[20, 20]]
    drawn = posterior.sample(torch.Generator().manual_seed(3))
    noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn[0, 1], 2 + torch.tensor(1.0).exp() * noise[0, 1])
    torch.testing.assert_close(drawn[0, 0], torch.tensor(1.0), atol=1e-5, rtol=0)
    half = GaussianPosterior(mean.bfloat16(), mean.bfloat16())
    assert half.mean.dtype == half.kl().dtype == torch.float32


def test_bottleneck_draws_in_train_mode_only() -> None:
    module = GaussianBottleneck(6, 2, kl_weight=0.5)
    latents = torch.randn(2, 3, 6)
    mean, log_variance = module.to_moments(latents).split(2, dim=-1)
    out = module.eval()(latents)
    assert torch.equal(out.codes, mean)
    assert out.ids is None
    torch.testing.assert_close(out.losses["kl"], 0.5 * GaussianPosterior(mean, log_variance).kl())
    drawn = module.train()(latents, rng=torch.Generator().manual_seed(1)).codes
    again = module(latents, rng=torch.Generator().manual_seed(1)).codes
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, mean)
    with pytest.raises(TypeError, match="is continuous"):
        module.lookup(torch.zeros(1, 1, dtype=torch.int64))


def test_channel_shortcut_passes_averages() -> None:
    module = GaussianBottleneck(6, 2, kl_weight=1.0, use_channel_shortcut=True)
    torch.nn.init.zeros_(module.to_moments.weight)
    torch.nn.init.zeros_(module.to_moments.bias)
    latents = torch.arange(6.0).expand(1, 1, 6)
    assert module.posterior(latents).mean.tolist() == [[[1.0, 4.0]]]
    with pytest.raises(ValueError, match="code_dim to divide dim, got 4 and 6"):
        GaussianBottleneck(6, 4, kl_weight=1.0, use_channel_shortcut=True)
