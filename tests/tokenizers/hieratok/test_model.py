from __future__ import annotations

import itertools
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.tokenizers.hieratok.presets import PRESETS

TINY = {
    "image_size": 8,
    "patch_size": 2,
    "latent_dim": 4,
    "scales": [1, 2, 4],
    "encoder_dim": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "decoder_dim": 24,
    "decoder_depth": 2,
    "decoder_heads": 3,
    "tail_depth": 1,
}
VARIANTS = list(itertools.product(("decoder", "encoder_tail", "both"), ("finest", "all")))


def make(**config: object) -> HieraTok:
    """Return a tiny model with weights large enough that every part has an effect."""
    torch.manual_seed(0)
    model = HieraTok(**{**TINY, **config})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_convolutions_take_the_place_of_patches() -> None:
    sizes = {"conv_channels": 8, "conv_blocks": [1, 2, 1, 2], "encoder_depth": 0, "decoder_depth": 0}
    model = make(**sizes, scales=[4])
    pyramid = model.encode(images())
    torch.testing.assert_close(model(images()).reconstruction, model.decode(pyramid))
    assert model.decode(pyramid).shape == (2, 3, 8, 8)
    assert (len(model.encoder.patch_embed.fine), len(model.encoder.patch_embed.coarse)) == (1, 2)
    assert (len(model.to_pixels.coarse), len(model.to_pixels.fine)) == (1, 2)
    # A convolution sees beyond its own cell, a patch does not.
    other = images()
    other[:, :, 0, 0] = 1
    moved = (model.encode(other).concat() - pyramid.concat()).abs().sum(dim=(0, 2)) > 1e-6
    assert int(moved.sum()) > 1
    alone = make(encoder_depth=0, scales=[4])
    moved = (alone.encode(other).concat() - alone.encode(images()).concat()).abs().sum(dim=(0, 2)) > 1e-6
    assert int(moved.sum()) == 1
    # Several scales, previews, and blocks at their start, which change nothing.
    assert make(**sizes, has_preview_heads=True).preview(images(), 1).shape == (2, 3, 2, 2)
    fresh = HieraTok(**{**TINY, **sizes}).to_pixels.fine
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(fresh(x), x)
    with pytest.raises(ValueError, match="convolutions need multiples of 8, and an even patch_size"):
        make(**{**sizes, "conv_channels": 6})


@pytest.mark.parametrize(("placement", "latent"), VARIANTS)
def test_every_variant_encodes_and_decodes(placement: str, latent: str) -> None:
    model = make(placement=placement, latent=latent)
    sides = (1, 2, 4) if latent == "all" else (4,)
    assert model.specs == tuple(LevelSpec(side**2, (side, side), 4) for side in sides)
    pyramid = model.encode(images())
    image = model.decode(pyramid)
    assert image.shape == (2, 3, 8, 8)
    out = model(images())
    torch.testing.assert_close(out.reconstruction, image)
    torch.testing.assert_close(out.pyramid.concat(), pyramid.concat())
    # Nothing depends on who else is in the batch.
    alone = make(placement=placement, latent=latent).double()
    together = alone(images(3).double()).reconstruction
    torch.testing.assert_close(alone(images(3)[1:2].double()).reconstruction, together[1:2], rtol=1e-10, atol=1e-10)
    # Both forms of attention say the same.
    other = make(placement=placement, latent=latent, attention="masked")
    torch.testing.assert_close(other(images()).reconstruction, out.reconstruction, rtol=1e-5, atol=1e-5)
    model.train()(images(), rng=seeded()).reconstruction.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("mask", ["scale_causal", "block_diagonal", "full", "reverse"])
@pytest.mark.parametrize("form", ["masked", "grouped"])
def test_finer_tokens_leave_coarser_outputs_alone(mask: str, form: str) -> None:
    model = make(mask=mask, attention=form)
    tokens = torch.randn(1, 21, 24)
    changed = tokens.clone()
    changed[:, 5:] += 1
    before, after = model.decoder(tokens), model.decoder(changed)
    assert torch.equal(before[:, :5], after[:, :5]) is (mask in ("scale_causal", "block_diagonal"))
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    # And the other way round: coarser tokens matter for finer outputs only where they are seen.
    changed = tokens.clone()
    changed[:, :5] += 1
    assert torch.equal(before[:, 5:], model.decoder(changed)[:, 5:]) is (mask in ("block_diagonal", "reverse"))


def test_the_published_scales() -> None:
    # A 16 x 16 map with scales 1, 2, 4, 8, 16: 341 tokens, of which the first four scales hold 85.
    sizes = {"image_size": 32, "scales": [1, 2, 4, 8, 16]}
    model, masked = make(**sizes), make(**sizes, attention="masked")
    assert int(model.decoder.mask.dense().sum()) == 93_093
    assert make(image_size=32, scales=[16]).decoder.mask.dense().all()
    tokens = torch.randn(1, 341, 24)
    whole = model.decoder(tokens)
    torch.testing.assert_close(masked.decoder(tokens), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.decoder(tokens[:, :85]), whole[:, :85], rtol=1e-5, atol=1e-5)
    changed = torch.cat((tokens[:, :85], torch.randn(1, 256, 24)), dim=1)
    for each in (model, masked):
        assert torch.equal(each.decoder(changed)[:, :85], each.decoder(tokens)[:, :85])


def test_prefix_of_scales_decodes_exactly() -> None:
    for latent, form in itertools.product(("finest", "all"), ("masked", "grouped")):
        model = make(latent=latent, attention=form)
        pyramid = model.encode(images())
        whole = model.decoder(model._pyramid_tokens(pyramid.concat()))
        for count in (1, 2, 3):
            preview = model.preview(pyramid, count)
            side = 2 ** (count - 1)
            assert preview.shape == (2, 3, 2 * side, 2 * side)
            torch.testing.assert_close(preview, model._level_pixels(whole, count - 1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(preview, model.preview(images(), count), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.preview(pyramid, 3), model.decode(pyramid), rtol=1e-5, atol=1e-6)


def test_prefix_of_levels_decodes_to_a_whole_image() -> None:
    model = make(latent="all")
    pyramid = model.encode(images())
    enlarged = F.interpolate(model.preview(pyramid, 2), size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.decode(pyramid.prefix(2)), enlarged)
    torch.testing.assert_close(model.preview(pyramid.prefix(2), 2), model.preview(pyramid, 2))


def test_one_scale_is_the_baseline_on_the_same_path() -> None:
    multi, single = make(), make(scales=[4])
    sizes = {name: value.numel() for name, value in multi.named_parameters()}
    baseline = {name: value.numel() for name, value in single.named_parameters()}
    assert sizes.keys() == baseline.keys()
    assert {name for name in sizes if sizes[name] != baseline[name]} == {"decoder.level_embed"}
    # Same weights, and the tokens that the baseline lacks hidden from the finest scale: the same image.
    hidden = make(mask="block_diagonal")
    state = hidden.state_dict()
    state["decoder.level_embed"] = state["decoder.level_embed"][2:]
    single.load_state_dict(state)
    torch.testing.assert_close(single(images()).reconstruction, hidden(images()).reconstruction, rtol=1e-5, atol=1e-5)


def test_rotary_positions_by_hand() -> None:
    model = make()
    table = model.decoder._constants.on(torch.device("cpu"))["rotary"]
    # The only token of the coarsest level sits in the middle of the 4 x 4 frame; heads have 4 pairs, the first half for rows.
    angles = torch.tensor([1.5, 1.5 * 10000**-0.5])
    torch.testing.assert_close(table[:, 0, :2], torch.stack((angles.cos(), angles.sin())))
    torch.testing.assert_close(table[:, 0, :2], table[:, 0, 2:])
    # Token 6 of the finest level: row 1, column 2.
    angle = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(table[:, 5 + 6, [0, 2]], torch.stack((angle.cos(), angle.sin())))


def test_posterior_sampling_and_losses() -> None:
    model = make(kl_weight=2.0, alignment_dim=7, has_preview_heads=True, preview_weight=0.5)
    posterior = model.posterior(images())
    assert torch.equal(model.encode(images()).concat(), posterior.mean)
    drawn = model.encode(images(), rng=seeded(3)).concat()
    noise = torch.randn(2, 16, 4, generator=seeded(3))
    torch.testing.assert_close(drawn, posterior.mean + (posterior.log_variance / 2).exp() * noise)

    out = model.train()(images(), rng=seeded(3))
    torch.testing.assert_close(out.pyramid.concat(), drawn)
    total = 0.5 * (posterior.mean**2 + posterior.log_variance.exp() - 1 - posterior.log_variance).sum() / 2
    torch.testing.assert_close(out.features["kl"], total)
    torch.testing.assert_close(out.losses["kl"], 2.0 * total / (3 * 8 * 8))
    torch.testing.assert_close(out.features["alignment"], drawn @ model.alignment_projection.weight.T)
    errors = []
    for count, side in ((1, 2), (2, 4)):
        small = F.interpolate(images(), size=(side, side), mode="area")
        errors.append((model.preview(out.pyramid, count) - small).abs().mean())
    torch.testing.assert_close(out.losses["preview"], 0.5 * sum(errors) / 2)


@pytest.mark.parametrize(
    "option",
    [
        {"pool": "bilinear"},
        {"pool": "strided_conv"},
        {"positions": "learned"},
        {"use_channel_shortcuts": True},
        {"scales": [2, 4]},
        {"mask": "full"},
        {"placement": "both"},
    ],
    ids=str,
)
def test_options_have_an_effect_and_are_saved(option: dict[str, object], tmp_path: Path) -> None:
    model = make(**option)
    out = model(images()).reconstruction
    assert not torch.allclose(out, make()(images()).reconstruction, atol=1e-4)
    model.save_pretrained(tmp_path)
    loaded = HieraTok.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images()).reconstruction, out, rtol=1e-4, atol=1e-5)


def test_half_precision_follows_the_weights() -> None:
    model = make()
    rough = make().bfloat16()
    pyramid = rough.encode(images())
    assert pyramid.levels[0].dtype == torch.bfloat16
    image = rough.decode(pyramid)
    assert image.dtype == torch.bfloat16
    assert (image.float() - model(images()).reconstruction).abs().mean() < 0.1 * image.abs().mean()


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for enable in (False, True):
        model = make(placement="both").train()
        if enable:
            model.enable_gradient_checkpointing()
        model(images(), rng=seeded()).reconstruction.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_batch_can_be_overfitted() -> None:
    torch.manual_seed(0)
    model = HieraTok(**TINY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data, rng = images(4), seeded()
    errors = []
    for _ in range(90):
        out = model(data, rng=rng)
        pixel = (out.reconstruction - data).square().mean()
        optimizer.zero_grad()
        (pixel + sum(out.losses.values())).backward()
        optimizer.step()
        errors.append(float(pixel.detach()))
    assert errors[-1] < 0.2 * errors[0]


def test_presets() -> None:
    blocks = {"s": 25.2e6, "b": 85.0e6, "l": 302e6}
    with torch.device("meta"):
        for size, count in blocks.items():
            model = HieraTok(**PRESETS[f"hieratok-{size}"].config)
            assert sum(p.numel() for p in model.decoder.blocks.parameters()) == pytest.approx(count, rel=2e-3)
            assert model.specs == (LevelSpec(256, (16, 16), 16),)
        tiny = HieraTok(**PRESETS["hieratok-tiny"].config)
    assert tiny.specs == (LevelSpec(16, (4, 4), 8),)


def test_refusals() -> None:
    for config, message in (
        ({"patch_size": 3}, "patch_size is 3, expected a divisor of image_size 8"),
        ({"scales": [1, 2]}, r"scales is \(1, 2\), expected increasing sides that end with 4, which is image_size"),
        ({"scales": [2, 1, 4]}, r"scales is \(2, 1, 4\)"),
        ({"scales": []}, r"scales is \(\)"),
        ({"decoder_heads": 5}, "num_heads is 5"),
        ({"decoder_heads": 4}, "head_dim is 6, expected a multiple of 4"),
        (
            {"decoder_dim": 42, "decoder_heads": 1, "use_channel_shortcuts": True},
            "latent_dim to divide decoder_dim, got 4, 42",
        ),
        ({"scales": [3, 4], "pool": "strided_conv"}, "needs each scale to divide the next"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**config)
    model = make()
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 4, 8\)"):
        model.encode(images()[:, :, :4])
    with pytest.raises(ValueError, match="num_scales is 4, expected 1 to 3"):
        model.preview(images(), 4)
    with pytest.raises(ValueError, match="a preview needs coarse scales that see no finer ones, mask is 'reverse'"):
        make(mask="reverse").preview(images(), 1)
    foreign = TokenPyramid((torch.zeros(1, 9, 4),), (LevelSpec(9, (3, 3), 4),))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(foreign)
    everything = make(latent="all")
    with pytest.raises(ValueError, match="the pyramid holds 1 levels, 2 scales need 2"):
        everything.preview(everything.encode(images()).prefix(1), 2)


@pytest.mark.parametrize("name", ["placement", "latent", "positions", "pool", "mask", "attention"])
def test_unknown_choices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"{name} is 'other', expected one of"):
        make(**{name: "other"})


def test_integer_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"images have dtype torch.uint8, expected floating point"):
        make().encode(images().to(torch.uint8))
