from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.generators.masked.cascade import MaskedCascade, MaskedCascadeSettings, StageConfig
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.known import Known
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

SPECS = (LevelSpec(8, dim=3), LevelSpec(12, dim=3))
LABELS = torch.tensor([1, 3])
FAST = MaskedCascadeSettings(num_steps=(2, 3), guidance_scale=2.0, head_steps=4, head_spacing="leading")


def _cascade(**config: Any) -> MaskedCascade:
    sizes: dict[str, Any] = {
        "level_specs": specs_to_json(SPECS),
        "num_classes": 5,
        "num_buffer": 2,
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "head_dim": 16,
        "head_depth": 1,
    }
    model = MaskedCascade(**{**sizes, **config})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model


def _pyramid(batch: int = 2) -> TokenPyramid:
    rng = torch.Generator().manual_seed(0)
    return TokenPyramid(tuple(torch.randn(batch, s.num_tokens, s.dim, generator=rng) for s in SPECS), SPECS)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_is_that_of_its_stages_drawn_one_after_the_other() -> None:
    model = _cascade(latent_mean=[[0.5] * 3, [1.0] * 3], latent_std=[[2.0] * 3, [3.0] * 3]).train()
    pyramid, rng = _pyramid(), _rng()
    both = model.loss(pyramid, LABELS, rng=_rng())
    low = model.low.loss(pyramid.prefix(1), LABELS, rng=rng)
    coarse = (pyramid.levels[0] - 0.5) / 2
    high = model.high.loss(TokenPyramid(pyramid.levels[1:], SPECS[1:]), LABELS, low_res=coarse, rng=rng)
    torch.testing.assert_close(both["loss"], low["loss"] + high["loss"])
    torch.testing.assert_close(both["low_mse"], low["mse"])
    torch.testing.assert_close(both["high_vb"], high["vb"])
    alone = model.loss(pyramid, LABELS, stages="low", rng=_rng())
    assert torch.equal(alone["loss"], low["loss"])
    assert set(alone) == {"loss", "low_loss", "low_mse", "low_vb"}


def test_generation_is_that_of_its_stages_and_can_start_from_the_coarse_level() -> None:
    model = _cascade(latent_mean=[[0.5] * 3, [1.0] * 3], latent_std=[[2.0] * 3, [3.0] * 3])
    seen: list[tuple[int, int]] = []
    made = model.generate(
        LABELS, FAST, rng=_rng(), callback=lambda step, done, **_: seen.append((step, 0 if done is None else len(done)))
    )
    assert made.specs == SPECS
    assert seen == [(0, 0), (1, 1), (2, 1), (3, 1), (4, 2)]
    rng = _rng()
    low = model.low.generate(LABELS, FAST.stage(0), rng=rng)
    fine = model.high.generate(LABELS, FAST.stage(1), low_res=model.low.standardize(low.levels[0]), rng=rng)
    assert torch.equal(made.levels[0], low.levels[0])
    assert torch.equal(made.levels[1], fine.levels[0])
    again = model.generate(LABELS, FAST, known=Known(low), rng=_rng(4))
    assert torch.equal(again.levels[0], low.levels[0])
    assert not torch.allclose(again.levels[1], made.levels[1])


def test_the_fine_level_follows_the_coarse_one_through_noise() -> None:
    model = _cascade()
    one, two = (TokenPyramid((value * torch.ones(2, 8, 3),), SPECS[:1]) for value in (1.0, -1.0))
    half, all_noise = FAST, dataclasses.replace(FAST, low_res_noise=1.0)
    apart = [model.generate(LABELS, half, known=Known(low), rng=_rng()).levels[1] for low in (one, two)]
    assert not torch.allclose(*apart)
    drowned = [model.generate(LABELS, all_noise, known=Known(low), rng=_rng()).levels[1] for low in (one, two)]
    assert torch.equal(*drowned)


def test_settings_by_stage() -> None:
    settings = MaskedCascadeSettings(num_steps=(8, 9), guidance_scale=3.0, high_guidance_scale=1.5, temperature=0.9)
    common = {"temperature": 0.9, "head_spacing": "leading"}
    assert settings.stage(0) == MaskedARSettings(num_steps=8, guidance_scale=3.0, **common)
    assert settings.stage(1) == MaskedARSettings(num_steps=9, guidance_scale=1.5, **common)
    assert MaskedCascadeSettings().stage(1) == MaskedARSettings(
        num_steps=64, guidance_scale=3.0, head_spacing="leading"
    )
    assert MaskedCascade.make_settings(guidance_scale=2.0).guidance_scale == 2.0


def test_the_default_spacing_does_not_amplify_the_errors_of_a_weak_head() -> None:
    """A head that predicts no noise at all is off by everything there is: its tokens grow by 1 / sqrt(alpha_bar) of the first step."""
    model = _cascade()
    for stage in (model.low, model.high):
        torch.nn.init.zeros_(stage.head.output.weight)
        torch.nn.init.zeros_(stage.head.output.bias)
    sizes = {
        spacing: model.generate(LABELS, MaskedCascade.make_settings(**change), rng=_rng()).levels[1].std()
        for spacing, change in (
            ("default", {"num_steps": 2}),
            ("linspace", {"num_steps": 2, "head_spacing": "linspace"}),
        )
    }
    assert sizes["default"] < 100
    assert sizes["linspace"] > 10_000


def test_image_features_and_dropped_coarse_tokens() -> None:
    model = _cascade(num_classes=None, feature_shapes=[[3, 16], [2, 7]], drop_low_res=True, condition_drop=1.0).train()
    features = [torch.randn(2, 3, 16), torch.randn(2, 2, 7)]
    losses = []
    for shift in (0.0, 5.0):
        pyramid = TokenPyramid((_pyramid().levels[0] + shift, _pyramid().levels[1]), SPECS)
        losses.append(model.loss(pyramid, features, stages="high", rng=_rng())["loss"])
    # Everything was dropped, the coarse tokens too.
    assert torch.equal(*losses)
    assert model.generate(features, FAST, rng=_rng()).batch_size == 2


def test_stages_get_the_entries_of_the_flat_config() -> None:
    model = _cascade(dim=32, depth=2, condition_drop=0.3, low_res_noise=(0.1, 0.2), latent_std=[[2.0] * 3, [3.0] * 3])
    low, high = model.low.config, model.high.config
    for config in (low, high):
        for part in ("encoder", "decoder"):
            assert [config[f"{part}_{name}"] for name in ("dim", "depth", "heads")] == [32, 2, 2]
        assert (config["condition_drop"], config["num_classes"], config["head_dim"]) == (0.3, 5, 16)
    assert (low["latent_std"], high["latent_std"]) == ([2.0] * 3, [3.0] * 3)
    assert (low["low_res_shape"], high["low_res_shape"]) == (None, [8, 3])
    assert list(high["low_res_noise"]) == [0.1, 0.2]
    shared = StageConfig.of_cascade(model.config)
    assert StageConfig.of_stage(low) == StageConfig.of_stage(high) == shared


def test_the_fine_stage_starts_from_the_coarse_one() -> None:
    low = _cascade().low
    cascade = MaskedCascade.from_low_stage(low, SPECS[1], drop_low_res=True)
    assert cascade.config["drop_low_res"]
    theirs = low.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in cascade.low.state_dict().items())
    high = cascade.high.state_dict()
    copied = cascade.initialize_high()
    assert set(theirs) - set(copied) == {f"transformer.{name}_positions" for name in ("encoder", "decoder", "query")}
    assert all(torch.equal(high[name], theirs[name]) for name in copied)
    for name in ("transformer.encoder_positions", "transformer.decoder_positions"):
        assert torch.equal(high[name][:, :2], theirs[name][:, :2])
        assert not torch.equal(high[name][:, 2:10], theirs[name][:, 2:10])


def test_every_parameter_learns() -> None:
    model = _cascade(condition_drop=0.5, drop_low_res=True).train()
    for seed in range(5):
        model.loss(_pyramid(8), torch.arange(8) % 5, rng=_rng(seed))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    model = _cascade(latent_mean=[[0.5] * 3, [1.0] * 3], latent_std=[[2.0] * 3, [3.0] * 3]).eval()
    model.save_pretrained(tmp_path)
    loaded = MaskedCascade.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    made = [m.generate(LABELS, FAST, rng=_rng()) for m in (model, loaded)]
    for levels in zip(*(pyramid.levels for pyramid in made), strict=True):
        torch.testing.assert_close(*levels, rtol=1e-4, atol=1e-5)
    half = MaskedCascade.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.high.head.input.weight.dtype == torch.float32
    assert half.generate(LABELS, FAST, rng=_rng()).levels[1].isfinite().all()


def test_errors_say_what_came_and_what_was_expected() -> None:
    model = _cascade()
    with pytest.raises(ValueError, match="level_specs holds 1 levels, a cascade has 2"):
        _cascade(level_specs=specs_to_json(SPECS[:1]))
    with pytest.raises(ValueError, match="latent_mean holds 1 lists, expected 2, one per level"):
        _cascade(latent_mean=[[0.0] * 3])
    with pytest.raises(ValueError, match="the pyramid's levels are"):
        model.loss(_pyramid().prefix(1), LABELS)
    with pytest.raises(ValueError, match=r"high_guidance_scale is -1.0, expected at least 0"):
        MaskedCascadeSettings(high_guidance_scale=-1.0)
    with pytest.raises(ValueError, match="num_steps holds 3 numbers, the generator has 2 stages"):
        MaskedCascadeSettings(num_steps=(1, 2, 3)).stage(0)
    low = {**_cascade().low.config}
    sizes = {name: value for name, value in low.items() if not name.startswith("_")}
    with pytest.raises(ValueError, match="encoder_depth 1 and decoder_depth 2, expected the same"):
        MaskedCascade.from_low_stage(MaskedAR(**{**sizes, "decoder_depth": 2}), SPECS[1])
    with pytest.raises(ValueError, match="the coarse stage has 2 levels, expected 1"):
        MaskedCascade.from_low_stage(MaskedAR(**{**sizes, "level_specs": specs_to_json(SPECS)}), SPECS[1])
    with pytest.raises(ValueError, match="the coarse stage has latent_std: give latent_std of both levels"):
        MaskedCascade.from_low_stage(MaskedAR(**{**sizes, "latent_std": [1.0, 2.0, 3.0]}), SPECS[1])
