from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.conditioning import Unconditional
from hiergen.generators.random_order.model import RandomOrderAR, RandomOrderARSettings
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.registry import create
from hiergen.seeding import SampleRng

SPECS = (LevelSpec(9, (3, 3), dim=4, vocab_size=13),)
SMALL: dict[str, Any] = {"level_specs": specs_to_json(SPECS), "num_classes": 4, "dim": 16, "depth": 2, "num_heads": 2}
LABELS = torch.tensor([0, 3, 2])
GUIDED = RandomOrderARSettings(guidance_scale=4.0, guidance_schedule="power_cosine", guidance_power=1.5)


def small(**overrides: Any) -> RandomOrderAR:
    """Return a small model whose logits depend on everything."""
    torch.manual_seed(1)
    model = RandomOrderAR(**{**SMALL, "dropout": 0.0, **overrides})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else 0.4)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def permutations(count: int) -> Tensor:
    return torch.stack([torch.randperm(9, generator=seeded(k)) for k in range(count)])


@pytest.mark.parametrize(
    ("name", "count"),
    [("rar-b", 260_923_648), ("rar-l", 461_668_352), ("rar-xl", 955_425_024), ("rar-xxl", 1_498_520_704)],
)
def test_presets_have_the_measured_numbers_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create(name)
        tokenizer = create("maskgit-vq")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    model.check_tokenizer(tokenizer.specs)


def test_the_tiny_preset_fits_its_tokenizer() -> None:
    create("rar-tiny").check_tokenizer(create("maskgit-vq-tiny").specs)


def test_a_token_is_predicted_from_earlier_ones_and_the_places_up_to_its_own() -> None:
    model, order, ids = small().eval(), permutations(1), torch.randint(13, (1, 9))
    before = model(ids, LABELS[:1], order)
    for place in range(9):
        changed = ids.clone()
        changed[0, place] = (ids[0, place] + 1) % 13
        same = (model(changed, LABELS[:1], order) - before).abs().amax(-1)[0] < 1e-5
        assert same.tolist() == [p <= place for p in range(10)]
        if place < 8:
            # What comes later in the order is not known yet: only the place asked for next.
            swapped = order.clone()
            swapped[0, [place, 8]] = order[0, [8, place]]
            same = (model(ids, LABELS[:1], swapped) - before).abs().amax(-1)[0] < 1e-5
            assert same.tolist() == [p < place for p in range(10)]


def test_at_the_start_every_block_is_the_identity() -> None:
    model = RandomOrderAR(**SMALL)
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    for block in model.blocks:
        assert torch.equal(block(x, condition), x)


def test_prefixes_give_the_logits_of_the_whole() -> None:
    model, order, ids = small().eval(), permutations(3), torch.randint(13, (3, 9))
    whole = model(ids, LABELS, order)
    for count in (0, 1, 7):
        torch.testing.assert_close(model(ids[:, :count], LABELS, order), whole[:, : count + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [RandomOrderARSettings(), GUIDED])
def test_the_cache_changes_nothing(settings: RandomOrderARSettings) -> None:
    model, fields = small().double(), vars(settings)
    found = [
        model.generate(LABELS, RandomOrderARSettings(**{**fields, "use_cache": use_cache}), rng=seeded()).levels[0]
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)


def test_a_sample_draws_by_itself() -> None:
    model = small()
    whole = model.generate(LABELS, GUIDED, rng=SampleRng.of(range(3))).levels[0]
    for index in range(3):
        alone = model.generate(LABELS[index : index + 1], GUIDED, rng=SampleRng.of([index])).levels[0]
        assert torch.equal(alone[0], whole[index])


def test_orders_are_random_in_the_share_that_is_set() -> None:
    model = small()
    raster = torch.arange(9)
    assert model.draw_orders(4, rng=seeded()) is None
    model.random_share = 0.5
    orders = model.draw_orders(400, rng=seeded())
    assert torch.equal(orders.sort(1).values, raster.expand(400, -1))
    assert abs(float((orders != raster).any(1).float().mean()) - 0.5) < 0.1
    model.random_share = 1.0
    assert bool((model.draw_orders(20, rng=seeded()) != raster).any(1).all())
    # Held-out tokens are scored in the order in which they are generated.
    pyramid = TokenPyramid((torch.randint(13, (3, 9)),), SPECS)
    scored = [model.eval().loss(pyramid, LABELS, rng=seeded(seed))["loss"] for seed in (0, 1)]
    assert torch.equal(*scored)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_loss_of_one_batch_falls(share: float) -> None:
    torch.manual_seed(0)
    model, losses = RandomOrderAR(**{**SMALL, "dropout": 0.0}).train(), []
    model.random_share = share
    ids = torch.randint(13, (1, 9), generator=seeded()).expand(8, -1).contiguous()
    optimizer, rng = torch.optim.Adam(model.parameters(), 1e-2), seeded()
    for _ in range(60):
        found = model.loss(TokenPyramid((ids,), SPECS), torch.zeros(8, dtype=torch.int64), rng=rng)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["loss"].detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_levels_are_told_when_they_are_complete() -> None:
    specs = (LevelSpec(2, dim=4, vocab_size=13), LevelSpec(3, dim=4, vocab_size=13))
    shown: list[int] = []
    model = small(level_specs=specs_to_json(specs))
    model.generate(LABELS, rng=seeded(), callback=lambda step, found: shown.append(len(found) if found else 0))
    assert shown == [0, 1, 1, 1, 2]


def test_samples_without_a_class_need_dropped_labels() -> None:
    assert small().makes_unconditional
    assert small().generate(Unconditional(2), GUIDED, rng=seeded()).levels[0].shape == (2, 9)
    with pytest.raises(ValueError, match="expected labels: none was dropped in training"):
        small(class_dropout=0.0).generate(Unconditional(2))


def test_saved_and_loaded_generates_the_same(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    loaded = RandomOrderAR.from_pretrained(tmp_path)
    assert torch.equal(*[m.generate(LABELS, GUIDED, rng=seeded()).levels[0] for m in (model, loaded)])
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_bfloat16_agrees_roughly() -> None:
    model, ids = small().eval(), torch.randint(13, (3, 9))
    wide = model(ids, LABELS)
    narrow = torch.nn.Module.to(model, torch.bfloat16)
    assert float((narrow(ids, LABELS) - wide).detach().abs().mean() / wide.detach().abs().mean()) < 0.1
    narrow.generate(LABELS, GUIDED, rng=seeded()).check_ids()


def test_recomputed_activations_give_the_same_gradients() -> None:
    model, pyramid = small().train(), TokenPyramid((torch.randint(13, (3, 9)),), SPECS)
    gradients: list[Tensor] = []
    for enabled in (False, True):
        if enabled:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model.loss(pyramid, LABELS, rng=seeded())["loss"].backward()
        gradients.append(model.target_embedding.grad.clone())
    torch.testing.assert_close(*gradients)


def test_published_settings() -> None:
    settings = RandomOrderARSettings.published("xl")
    assert (settings.temperature, settings.guidance_scale, settings.guidance_power) == (1.02, 6.9, 1.5)
    with pytest.raises(ValueError, match="size is 's', expected one of b, l, xl, xxl"):
        RandomOrderARSettings.published("s")


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"num_heads": 3}, "num_heads is 3, expected a divisor of dim 16"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5, expected 0 to 1"),
        ({"num_position_rows": 10}, "num_position_rows is 10, expected at least 11 for 9 tokens"),
        ({"num_step_rows": 10}, "num_step_rows is 10, expected at least 11 for 9 tokens"),
        (
            {"level_specs": specs_to_json([LevelSpec(1, vocab_size=3), LevelSpec(2, vocab_size=4)])},
            r"vocabularies \[3, 4\], expected discrete levels of one vocabulary",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        RandomOrderAR(**{**SMALL, **overrides})


def test_wrong_inputs_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="ids holds 10 tokens per sample, expected at most the 9"):
        model(torch.zeros(1, 10, dtype=torch.int64), LABELS[:1])
    with pytest.raises(ValueError, match=r"order has shape \(1, 8\), expected \(1, 9\)"):
        model(torch.zeros(1, 3, dtype=torch.int64), LABELS[:1], torch.arange(8)[None])
    with pytest.raises(ValueError, match="class labels span 4 to 4, expected 0 to 3"):
        model.generate(torch.tensor([4]))
    other = (LevelSpec(9, dim=4, vocab_size=13),)
    with pytest.raises(ValueError, match="the pyramid's levels are"):
        model.loss(TokenPyramid((torch.zeros(1, 9, dtype=torch.int64),), other), LABELS[:1])
    torch.nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="RandomOrderAR gives NaN or infinity: logits at step 0 of 9"):
        model.generate(LABELS)
