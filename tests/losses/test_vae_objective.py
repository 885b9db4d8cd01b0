from __future__ import annotations

import dataclasses

import pytest
import torch

from hiergen.losses.vae_objective import VAEObjective, VAEPass, reconstruction_nll


def test_nll_by_plain_loops() -> None:
    images, other = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    perceptual = torch.tensor([0.3, 0.7], dtype=torch.float64)
    total = 0.0
    for b in range(2):
        for c in range(3):
            for h in range(4):
                for w in range(4):
                    total += abs(float(images[b, c, h, w] - other[b, c, h, w])) + 0.5 * float(perceptual[b])
    nll = reconstruction_nll(images, other, perceptual=perceptual, perceptual_weight=0.5)
    assert float(nll) == pytest.approx(total / 2)
    assert float(reconstruction_nll(images, other)) == pytest.approx(float((images - other).abs().sum()) / 2)
    assert reconstruction_nll(images.bfloat16(), other.bfloat16()).dtype == torch.float32


class ToyVAE:
    """A linear encoder and decoder: every gradient can be taken directly."""

    def __init__(self) -> None:
        self.encoder = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        self.decoder = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        self.images = torch.randn(3, 1, 2, 2, dtype=torch.float64)
        self.teacher = torch.randn(3, 2, 2, dtype=torch.float64)

    def step(self) -> VAEPass:
        latents = self.images.flatten(1) @ self.encoder
        reconstruction = (latents @ self.decoder).reshape(3, 1, 2, 2)
        return VAEPass(
            images=self.images,
            reconstruction=reconstruction,
            kl=0.5 * latents.square().sum() / 3,
            perceptual=reconstruction.square().mean(dim=(1, 2, 3)),
            fake_logits=reconstruction.sin(),
            projected=latents.reshape(3, 2, 2),
            teacher=self.teacher,
            output_weight=self.decoder,
            latent_weight=self.encoder,
        )


def test_objective_and_its_gradient_by_hand() -> None:
    toy = ToyVAE()
    objective = VAEObjective(kl_weight=0.01, cosine_margin=0.2, distance_margin=0.1)
    out = objective(toy.step())
    gradients = torch.autograd.grad(out["loss"], (toy.encoder, toy.decoder))

    def norm(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, weight, retain_graph=True)[0].pow(2).sum().sqrt()

    step = toy.step()
    nll = (step.images - step.reconstruction).abs().sum() / 3 + step.perceptual.sum() / 3 * 4
    adversarial = -step.fake_logits.mean()
    z, f = step.projected, step.teacher
    alignment = torch.relu(0.8 - torch.cosine_similarity(z, f, dim=2)).mean()
    pairs_z = torch.cosine_similarity(z[:, :, None], z[:, None], dim=3)
    pairs_f = torch.cosine_similarity(f[:, :, None], f[:, None], dim=3)
    alignment = alignment + torch.relu((pairs_z - pairs_f).abs() - 0.1).mean()
    gan_scale = (norm(nll, toy.decoder) / (norm(adversarial, toy.decoder) + 1e-4)).detach()
    vf_scale = (norm(nll, toy.encoder) / (norm(alignment, toy.encoder) + 1e-4)).detach()
    loss = nll + 0.01 * step.kl + 0.5 * gan_scale * adversarial + 0.1 * vf_scale * alignment
    torch.testing.assert_close(out["loss"], loss)
    torch.testing.assert_close(out["adversarial_scale"], gan_scale)
    torch.testing.assert_close(out["alignment_scale"], vf_scale)
    for mine, theirs in zip(gradients, torch.autograd.grad(loss, (toy.encoder, toy.decoder)), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")


def test_terms_are_left_out() -> None:
    step = ToyVAE().step()
    bare = dataclasses.replace(step, perceptual=None, fake_logits=None, projected=None)
    out = VAEObjective()(bare)
    assert set(out) == {"loss", "nll", "kl"}
    torch.testing.assert_close(out["loss"], out["nll"] + 1e-6 * out["kl"])
    assert "alignment" not in VAEObjective(alignment_weight=0.0)(step)


def test_refusals() -> None:
    step = ToyVAE().step()
    with pytest.raises(ValueError, match="fake_logits came without output_weight"):
        VAEObjective()(dataclasses.replace(step, output_weight=None))
    for missing in ("latent_weight", "teacher"):
        with pytest.raises(ValueError, match="projected came without latent_weight and teacher"):
            VAEObjective()(dataclasses.replace(step, **{missing: None}))
