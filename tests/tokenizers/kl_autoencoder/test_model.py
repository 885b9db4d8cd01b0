from __future__ import annotations

from pathlib import Path

import jaxtyping
import pytest
import torch
from diffusers import AutoencoderKL

import hiergen
from hiergen.data.images.in_memory import ImageSet
from hiergen.pipelines.encoding import encode_images
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.kl_autoencoder.model import KLAutoencoder
from hiergen.tokenizers.kl_autoencoder.presets import PRESETS
from hiergen.training.tasks.settings import GeneratorTaskConfig

#: Stride 4, attention at the coarsest resolution of the encoder.
TINY = {
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "latent_channels": 3,
    "norm_num_groups": 4,
    "sample_size": 16,
    "scaling_factor": 1.0,
}


def make(**config: object) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(**{"autoencoder": TINY, "image_size": 16, **config}).eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(5)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_it_is_diffusers_autoencoder_with_tokens_in_row_order() -> None:
    model = make()
    assert model.specs == (LevelSpec(16, (4, 4), 3),)
    pyramid = model.encode(images())
    theirs = model.vae.encode(images()).latent_dist
    for token in range(16):
        assert torch.equal(pyramid.levels[0][:, token], theirs.mean[:, :, token // 4, token % 4])
    torch.testing.assert_close(model.decode(pyramid), model.vae.decode(theirs.mean).sample)
    posterior = model.posterior(images())
    torch.testing.assert_close(posterior.kl(), theirs.kl().mean())
    drawn = model.encode(images(), rng=seeded(3)).levels[0]
    noise = torch.randn(2, 16, 3, generator=seeded(3))
    std = theirs.std.flatten(2).transpose(1, 2)
    torch.testing.assert_close(drawn, pyramid.levels[0] + std * noise)
    alone = model.encode(images()[1:])
    torch.testing.assert_close(alone.levels[0], pyramid.levels[0][1:])


def test_training_draws_latents_and_reports_the_divergence() -> None:
    model = make(kl_weight=0.5, alignment_dim=7).train()
    out = model(images(), rng=seeded(1))
    torch.testing.assert_close(out.pyramid.levels[0], model.encode(images(), rng=seeded(1)).levels[0])
    torch.testing.assert_close(out.features["kl"], model.posterior(images()).kl())
    torch.testing.assert_close(out.losses["kl"], 0.5 * out.features["kl"] / (3 * 16 * 16))
    torch.testing.assert_close(out.features["alignment"], out.pyramid.levels[0] @ model.alignment_projection.weight.T)
    loss = out.reconstruction.square().mean() + out.losses["kl"] + out.features["alignment"].square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.output_weight.grad.abs().sum() > 0
    assert model.latent_weight.grad.abs().sum() > 0
    assert model.latent_weight.shape == (6, 16, 3, 3)


def test_saved_loaded_and_taken_from_diffusers_are_equal(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "ours")
    model.vae.save_pretrained(tmp_path / "theirs")
    expected = model(images()).reconstruction
    for folder in ("ours", "theirs"):
        loaded = hiergen.from_pretrained(tmp_path / folder)
        assert isinstance(loaded, KLAutoencoder)
        assert not loaded.training
        torch.testing.assert_close(loaded(images()).reconstruction, expected, rtol=1e-4, atol=1e-5)
    vae = AutoencoderKL.from_pretrained(tmp_path / "theirs")
    assert KLAutoencoder.from_autoencoder(vae, image_size=32).specs[0].grid == (8, 8)


def test_published_sizes() -> None:
    # Counted on the official programs; KL-16 has no attention in its decoder's first level.
    for name, millions, tensors in (("kl-16", 66.46, 312), ("va-vae-f16d32", 69.84, 342)):
        with torch.device("meta"):
            model = create(name)
        assert len(model.vae.state_dict()) == tensors
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
        generators = {"kl-16": ["mar-b", "mar-l", "mar-h"], "va-vae-f16d32": ["lightningdit-xl"]}[name]
        for generator in generators:
            with torch.device("meta"):
                create(generator).check_tokenizer(model.specs)
    assert set(PRESETS) == {"kl-16", "va-vae-f16d32"}


def test_mar_runs_on_its_latents(tmp_path: Path) -> None:
    """From images through a cache of latents to a training loss and generated images."""
    tokenizer = make()
    encode_images(tokenizer, ImageSet(images(8), torch.arange(8) % 2, ("a", "b")), tmp_path / "codes")
    sizes = {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
    task = GeneratorTaskConfig(
        preset="mar-tiny", codes=str(tmp_path / "codes"), overrides={**sizes, "decoder_heads": 2, "head_dim": 16}
    ).build()
    batch = task.dataset.batch([(k, 0) for k in range(8)], seed=0)
    assert task.losses("generator", batch, seeded())["loss"].isfinite()
    pipe = ClassToImagePipeline(tokenizer=tokenizer, generator=task.generator)
    made = pipe([0, 1], generator=seeded(), output_type="pt", num_steps=2, head_steps=3).images
    assert made.shape == (2, 3, 16, 16)
    pipe.save_pretrained(tmp_path / "pipeline")
    again = hiergen.from_pretrained(tmp_path / "pipeline")
    loaded = again([0, 1], generator=seeded(), output_type="pt", num_steps=2, head_steps=3).images
    torch.testing.assert_close(loaded, made, rtol=1e-4, atol=1e-5)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="image_size is 18, expected a multiple of the stride 4"):
        make(image_size=18)
    with pytest.raises(TypeError, match="blocks_out"):
        make(autoencoder={**TINY, "blocks_out": 3})
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 8, 16\)"):
        make().encode(images()[:, :, :8])
    foreign = TokenPyramid((torch.zeros(1, 9, 3),), (LevelSpec(9, (3, 3), 3),))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        make().decode(foreign)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"images have dtype torch\.uint8"):
        make().encode(images().to(torch.uint8))
