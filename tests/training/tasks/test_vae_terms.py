from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import (
    AdversarialConfig,
    AlignmentConfig,
    FoundationConfig,
    PerceptualConfig,
    VAEConfig,
)

TINY = {
    "scales": [2, 4],
    "encoder_dim": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "latent_dim": 4,
    "alignment_dim": 24,
}
#: A map of 4 x 4 from 64 x 64 pixels, as the latents have.
FOUNDATION = FoundationConfig(
    weight=0.3,
    cosine_margin=0.2,
    distance_margin=0.05,
    model="vit_tiny_patch16_224",
    image_size=64,
    weights="random",
    options={"embed_dim": 24, "depth": 1, "num_heads": 2},
)
CONFIG = TokenizerTaskConfig(
    preset="hieratok-tiny",
    overrides=TINY,
    perceptual=PerceptualConfig(weight=0.7, network="alex", jitter=0, weights="random"),
    adversarial=AdversarialConfig(
        weight=0.5,
        start_samples=16,
        discriminator="patch",
        augment=False,
        lecam_weight=0.0,
        options={"dim": 4, "num_layers": 1},
        optim=OptimConfig(lr=1e-4),
    ),
    vae=VAEConfig(kl_weight=0.01, foundation=FOUNDATION),
)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def norm(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0].square().sum().sqrt()


def test_the_loss_is_va_vaes_by_plain_statements() -> None:
    torch.manual_seed(0)
    task = CONFIG.build()
    model, discriminator = task.model, task.players["discriminator"].eval()
    images = task.dataset.batch([(0, 0), (1, 0)], seed=0)["image"]
    task.begin_step(16)
    terms = task.losses("tokenizer", {"image": images}, rng())

    output = model(images, rng=rng())
    rebuilt, z = output.reconstruction, output.features["alignment"]
    posterior = model.posterior(images)
    # Sums over all 3 * 32 * 32 entries, the perceptual distance added to each of them, divided by the batch alone.
    distance = task._perceptual._distance.on(images.device)(rebuilt, images)
    nll = ((images - rebuilt).abs() + 0.7 * distance[:, None, None, None]).sum() / 2
    variance = posterior.log_variance.exp()
    kl = 0.5 * (posterior.mean**2 + variance - 1 - posterior.log_variance).sum() / 2
    adversarial = -discriminator.discriminator(rebuilt).mean()
    teacher = task._vae._teacher.on(images.device).model
    f = teacher.forward_features(F.interpolate(images, size=(64, 64), mode="bilinear", align_corners=False))[:, 1:]
    alignment = F.relu(0.8 - F.cosine_similarity(z, f, dim=2)).mean()
    gaps = F.cosine_similarity(z[:, :, None], z[:, None], dim=3) - F.cosine_similarity(f[:, :, None], f[:, None], dim=3)
    alignment = alignment + F.relu(gaps.abs() - 0.05).mean()
    last, latents = model.final_conv.weight, model.bottleneck.to_moments.weight
    gan = 0.5 * (norm(nll, last) / (norm(adversarial, last) + 1e-4)).clamp(0, 1e4).detach()
    vf = 0.3 * (norm(nll, latents) / (norm(alignment, latents) + 1e-4)).clamp(0, 1e8).detach()
    preview = 3 * 32 * 32 * output.losses["preview"]
    loss = nll + 0.01 * kl + gan * adversarial + vf * alignment + preview
    assert min(float(x.detach()) for x in (nll, kl, alignment, gan, vf)) > 0
    torch.testing.assert_close(terms["loss"], loss)
    torch.testing.assert_close(terms["alignment"], alignment.detach())
    names = ("final_conv.weight", "bottleneck.to_moments.weight", "alignment_projection.weight")
    parameters = [model.get_parameter(name) for name in names]
    ours, plain = (torch.autograd.grad(value, parameters) for value in (terms["loss"], loss))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert float(a.abs().sum()) > 0
    assert not any(value.requires_grad for name, value in terms.items() if name != "loss")

    # Before the discriminator's start its term is not there.
    task.begin_step(0)
    early = task.losses("tokenizer", {"image": images}, rng())
    torch.testing.assert_close(early["loss"], loss - gan * adversarial)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_under_autocast_stays_near_float32(dtype: torch.dtype, assert_near_float32) -> None:
    torch.manual_seed(0)
    task = CONFIG.build()
    task.players["discriminator"].eval()
    task.begin_step(16)
    assert_near_float32(task, dtype)


def test_alignment_is_optional_and_a_run_trains_with_it(tmp_path) -> None:
    off = dataclasses.replace(CONFIG, vae=VAEConfig(), perceptual=None, adversarial=None)
    task = off.build()
    images = task.dataset.batch([(0, 0)], seed=0)["image"]
    terms = task.losses("tokenizer", {"image": images}, rng())
    assert set(terms) == {"loss", "pixel", "nll", "kl", "preview"}
    expected = terms["nll"] + 1e-6 * terms["kl"] + 3 * 32 * 32 * terms["preview"]
    torch.testing.assert_close(terms["loss"].detach(), expected)
    # Without weight the foundation model is not even looked for.
    assert dataclasses.replace(off, vae=VAEConfig(foundation=FoundationConfig(weight=0.0, weights="none"))).build()

    optim = OptimConfig(lr=1e-3, betas=(0.5, 0.9), weight_decay=0.0, clip_norm=None, schedule="constant")
    result = fit(
        TrainConfig(CONFIG, str(tmp_path / "run"), samples=48, batch_size=8, log_every=16, optim=optim, ema_decay=None),
        cpu=True,
    )
    assert "tokenizer/adversarial" not in result.log[0]
    assert result.log[-1]["tokenizer/nll"] < result.log[0]["tokenizer/nll"]
    assert result.log[-1]["tokenizer/adversarial_scale"] > 0
    # The foundation model is no part of what is saved.
    assert sorted(path.name for path in result.model_dir.iterdir()) == [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"alignment is set beside vae, which has its own: use vae\.foundation"):
        dataclasses.replace(CONFIG, alignment=AlignmentConfig())
    with pytest.raises(ValueError, match=r"adversarial\.is_adaptive is set beside vae"):
        dataclasses.replace(CONFIG, adversarial=AdversarialConfig(is_adaptive=True))
    with pytest.raises(
        ValueError,
        match="vae needs a tokenizer with a Gaussian bottleneck, such as HieraTok or KLAutoencoder; got ResTok",
    ):
        TokenizerTaskConfig(vae=VAEConfig()).build()
    for dim in (None, 7):
        unlike = dataclasses.replace(CONFIG, overrides={**TINY, "alignment_dim": dim})
        with pytest.raises(
            ValueError, match=rf"has 24 channels, the tokenizer projects its latents to {dim}: set overr"
        ):
            unlike.build()
    large = dataclasses.replace(FOUNDATION, image_size=32)
    task = dataclasses.replace(CONFIG, vae=VAEConfig(foundation=large), adversarial=None).build()
    images = task.dataset.batch([(0, 0)], seed=0)["image"]
    with pytest.raises(ValueError, match="the foundation model's map has 4 positions, the latents have 16"):
        task.losses("tokenizer", {"image": images}, rng())
