from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hiergen
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.seeding import SampleRng
from hiergen.tokenizers.flextok.config import FlowDecoding
from hiergen.tokenizers.flextok.model import FlexTok, _spread_loss

SMALL: dict[str, Any] = {"image_size": 8, "patch_size": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2}
SMALL |= {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2, "num_registers": 8, "code_levels": [4, 3]}
SMALL |= {"num_steps": 3}
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 8,
}
KINDS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "latents": {"autoencoder": VAE, "scaling_factor": 0.5, "sample_posterior": True},
}


def small(kind: str = "pixels", **overrides: Any) -> FlexTok:
    """Return a small model in which nothing is zero."""
    torch.manual_seed(1)
    model = FlexTok(**{**SMALL, **KINDS[kind], **overrides})
    for module in (model.encoder, model.decoder):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_fresh_model_gives_the_center_code_and_no_velocity() -> None:
    torch.manual_seed(0)
    model = FlexTok(**SMALL).eval()
    pyramid = model.encode(images())
    assert model.specs == tuple(LevelSpec(size, dim=2, vocab_size=12) for size in (1, 1, 2, 4))
    assert set(pyramid.concat().flatten().tolist()) == {2 + 4 * 1}
    noise = torch.randn(3, 3, 8, 8, generator=rng(5))
    torch.testing.assert_close(model.decode(pyramid, rng=rng(5)), noise)


@pytest.mark.parametrize(("kind", "share"), [("pixels", 0.4), ("latents", 0.9)])
def test_the_loss_of_one_batch_falls_and_tokens_lead_the_flow(kind: str, share: float) -> None:
    """Plain colors are learned; what is left of the latents of a random autoencoder is mostly noise of its posterior."""
    torch.manual_seed(0)
    model = FlexTok(**{**SMALL, **KINDS[kind]}).train()
    x, losses = images(8)[..., :1, :1].expand(8, 3, 8, 8).contiguous(), []
    optimizer, draws = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2), rng()
    for _ in range(100):
        output = model(x.repeat(2, 1, 1, 1), rng=draws)
        assert not output.reconstruction.requires_grad
        assert output.reconstruction.shape == (16, 3, 8, 8)
        optimizer.zero_grad()
        output.losses["flow"].backward()
        optimizer.step()
        losses.append(float(output.losses["flow"].detach()))
    assert sum(losses[-20:]) < share * sum(losses[:20])
    assert model.vae is None or all(p.grad is None for p in model.vae.parameters())
    if kind == "pixels":
        settings, pyramid = FlowDecoding(num_steps=10, guidance_scale=1.0), model.eval().encode(x)
        swapped = TokenPyramid(tuple(level.roll(1, 0) for level in pyramid.levels), model.specs)
        errors = [(model.decode(p, settings) - x).square().mean() for p in (pyramid, swapped)]
        assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_decodes_and_only_its_tokens_count(kind: str) -> None:
    model = small(kind).eval()
    pyramid, found = model.encode(images()), []
    assert model.decodable_levels == (1, 2, 3, 4)
    for levels, tokens in ((1, 1), (2, 2), (3, 4), (4, 8)):
        decoded = model.decode(pyramid.prefix(levels), rng=rng())
        assert decoded.shape == (3, 3, 8, 8)
        assert torch.isfinite(decoded).all()
        assert torch.equal(decoded, model.decode(pyramid, num_tokens=tokens, rng=rng()))
        assert all(not torch.equal(decoded, other) for other in found)
        found.append(decoded)
    other = TokenPyramid.split((pyramid.concat() + torch.tensor([0] * 5 + [1] * 3)) % 12, model.specs)
    assert torch.equal(model.decode(pyramid, num_tokens=5), model.decode(other, num_tokens=5))
    assert not torch.equal(model.decode(pyramid, num_tokens=6), model.decode(other, num_tokens=6))


def test_a_latent_depends_on_earlier_registers_and_all_patches() -> None:
    model = small().eval()
    latents = model.encoder(images(1))
    for index in range(8):
        (gradient,) = torch.autograd.grad(latents[0, index].sum(), model.encoder.registers, retain_graph=True)
        assert (gradient.abs().amax(1) > 0).tolist() == [place <= index for place in range(8)]
    # Patches see no register, so fewer registers give the same first latents.
    shorter = small(num_registers=2)
    shorter.encoder.load_state_dict({**model.encoder.state_dict(), "registers": model.encoder.registers[:2].detach()})
    torch.testing.assert_close(shorter.eval().encoder(images(1)), latents[:, :2])


def test_noise_is_the_callers_or_a_fixed_one() -> None:
    model = small().eval()
    pyramid = model.encode(images())
    fixed = model.decode(pyramid)
    # Products of another batch are summed in another order on some processors, over all steps.
    torch.testing.assert_close(model.decode(pyramid[1:2]), fixed[1:2], atol=1e-4, rtol=1e-4)
    first, again, other = (model.decode(pyramid, rng=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, fixed)
    whole = model.decode(pyramid, rng=SampleRng.of(range(3), "test"))
    torch.testing.assert_close(model.decode(pyramid[2:], rng=SampleRng.of([2], "test")), whole[2:])
    assert torch.equal(model.eval()(images()).reconstruction, fixed)


def test_latents_are_drawn_only_where_that_is_asked_for() -> None:
    model = small("latents").eval()
    model.vae.quant_conv.bias.data[4:] = 3.0
    x = images()
    modes = [model.encode(x) for _ in range(2)]
    draws = [model.encode(x, rng=rng(seed)).concat() for seed in (0, 0, 1)]
    assert torch.equal(modes[0].concat(), modes[1].concat())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    still = small("latents", sample_posterior=False).eval()
    still.load_state_dict(model.state_dict())
    assert torch.equal(still.encode(x, rng=rng()).concat(), modes[0].concat())


def test_training_draws_are_reproducible_and_null_samples_read_no_code() -> None:
    model = small().train()
    first, again = (model(images(), rng=rng(3)) for _ in range(2))
    assert torch.equal(first.losses["flow"], again.losses["flow"])
    blind = small(null_prob=1.0).train()
    blind(images(), rng=rng()).losses["flow"].backward()
    assert blind.decoder.embed.weight.grad.abs().sum() == 0
    assert blind.decoder.null_token.grad.abs().sum() > 0
    assert blind.encoder.to_codes.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_equal(kind: str, tmp_path: Path) -> None:
    model = small(kind).eval()
    model.save_pretrained(tmp_path)
    loaded = FlexTok.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(images()).reconstruction, model(images()).reconstruction)
    half = FlexTok.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.encoder.registers.dtype == torch.bfloat16
    assert half.decoder.patch_embed.position_table().dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_and_autocast_are_near(kind: str) -> None:
    model = small(kind, guidance="plain", guidance_scale=1.5).eval()
    pyramid = model.encode(images())
    wanted = model.decode(pyramid, rng=rng())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.decode(pyramid, rng=rng())
        loss = model.train()(images(), rng=rng()).losses["flow"]
    assert torch.isfinite(loss)
    half = model.eval().to(torch.bfloat16).decode(pyramid, rng=rng())
    for found in (cast, half):
        assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, gradients = small().train(), []
    for is_on in (False, True):
        if is_on:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(images(), rng=rng()).losses["flow"].backward()
        gradients.append(model.encoder.registers.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_har_generates_its_levels_in_a_pipeline(tmp_path: Path) -> None:
    tokenizer = small().eval()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    generator = hiergen.create("har-tiny", level_specs=specs_to_json(tokenizer.specs), **sizes)
    loss = generator.loss(tokenizer.encode(images()), torch.tensor([0, 1, 2]), rng=rng())["loss"]
    assert torch.isfinite(loss)
    pipe = hiergen.ClassToImagePipeline(tokenizer=tokenizer, generator=generator.eval())
    pipe.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path)
    found = [p([0, 2], generator=rng(), output_type="pt").images for p in (pipe, loaded)]
    assert found[0].shape == (2, 3, 8, 8)
    assert torch.equal(found[0], found[1])


def test_what_does_not_fit_is_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="images have shape"):
        model.encode(torch.zeros(1, 3, 9, 9))
    pyramid = model.encode(images())
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"num_tokens is {count}, expected 1 to 2, the tokens of the pyramid"):
            model.decode(pyramid.prefix(2), num_tokens=count)
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(TokenPyramid((torch.zeros(1, 5, dtype=torch.int64),), (LevelSpec(5, dim=2, vocab_size=12),)))


def test_latents_are_kept_from_being_one_code_for_all_images() -> None:
    """Minimized alone, the term spreads the latents of different images over several codes at every token."""
    torch.manual_seed(0)
    model = FlexTok(**SMALL, spread_weight=1.0).train()
    x, optimizer = images(16), torch.optim.Adam(model.encoder.parameters(), 1e-2)
    found = []
    for step in range(30):
        output = model(x, rng=rng(step))
        optimizer.zero_grad()
        output.losses["spread"].backward()
        optimizer.step()
        found.append(output)
    assert found[-1].losses["spread"] < 0.3 * found[0].losses["spread"]
    assert all(ids.unique().numel() >= 4 for ids in found[-1].pyramid.concat().unbind(1))
    assert "spread" not in FlexTok(**SMALL).train()(x, rng=rng()).losses
    # A batch of one has nothing to vary over.
    assert "spread" not in model(x[:1], rng=rng()).losses


def test_the_spread_is_by_how_much_numbers_vary_too_little_and_together() -> None:
    wide = torch.tensor([[2.0, -2.0], [-2.0, 2.0], [2.0, 2.0], [-2.0, -2.0]])
    assert _spread_loss(wide) == pytest.approx(0, abs=1e-6)
    # Deviations of 0.5 lack 0.5; two columns that are one are correlated by 1 off the diagonal, half of four entries.
    assert _spread_loss(wide / 4) == pytest.approx(0.5, abs=1e-3)
    assert _spread_loss(wide[:, :1].expand(4, 2)) == pytest.approx(0.5, abs=1e-3)
