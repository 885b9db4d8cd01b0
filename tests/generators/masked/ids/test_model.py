from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.conditioning import Unconditional
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.ids.settings import MaskedIdsSettings, gumbel_noise, least_sure
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.registry import create
from hiergen.seeding import SampleRng

SPECS = (LevelSpec(6, dim=4, vocab_size=13),)
SMALL: dict[str, Any] = {"level_specs": specs_to_json(SPECS), "num_classes": 4, "dim": 16, "depth": 2, "num_heads": 2}
FORMS = ("post_norm", "skip")
LABELS = torch.tensor([0, 3, 2])


def small(blocks: str = "post_norm", **overrides: Any) -> MaskedIds:
    """Return a small model whose logits depend on everything."""
    torch.manual_seed(1)
    model = MaskedIds(**{**SMALL, "blocks": blocks, "dropout": 0.0, **overrides})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "embedding" in name else 0.5)
    return model


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "count"),
    [("maskgit-l-32", 177_202_432), ("maskgit-b-64", 177_227_008), ("maskgit-s-128", 294_990_848)],
)
def test_presets_have_the_measured_numbers_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = create(name)
        tokenizer = create(name.replace("maskgit", "titok"))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    model.check_tokenizer(tokenizer.specs)


def test_the_tiny_preset_fits_its_tokenizer() -> None:
    create("maskgit-tiny").check_tokenizer(create("titok-tiny").specs)


@pytest.mark.parametrize("blocks", FORMS)
def test_the_loss_of_one_batch_falls(blocks: str) -> None:
    torch.manual_seed(0)
    model, losses = MaskedIds(**{**SMALL, "blocks": blocks, "dropout": 0.0, "label_smoothing": 0.0}).train(), []
    ids = torch.randint(13, (1, 6), generator=seeded()).expand(8, -1).contiguous()
    optimizer, rng = torch.optim.Adam(model.parameters(), 1e-2), seeded()
    for _ in range(60):
        found = model.loss(TokenPyramid((ids,), SPECS), torch.zeros(8, dtype=torch.int64), rng=rng)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(float(found["loss"].detach()))
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert found["accuracy"] > 0.7


def test_published_counts_of_hidden_tokens() -> None:
    counts = {32: [29, 26, 24, 21, 18, 14, 10, 0], 64: [58, 53, 48, 42, 36, 29, 20, 0]}
    for num_tokens, expected in counts.items():
        settings = MaskedIdsSettings.published(num_tokens)
        assert [settings.num_hidden(step, num_tokens) for step in range(8)] == expected
    assert MaskedIdsSettings.published(128).num_steps == 64
    with pytest.raises(ValueError, match="num_tokens is 256, expected one of 32, 64, 128"):
        MaskedIdsSettings.published(256)


def test_every_step_hides_what_the_schedule_says() -> None:
    model, seen = small(), []
    forward = model.forward
    model.forward = lambda ids, condition: (seen.append(int((ids == 13).sum(1)[0])), forward(ids, condition))[1]  # type: ignore[method-assign]
    settings = MaskedIdsSettings(num_steps=4)
    model.generate(LABELS, settings, rng=seeded())
    assert seen == [6, *(settings.num_hidden(step, 6) for step in range(3))]


def test_the_least_sure_are_hidden_and_ties_with_the_last() -> None:
    confidence = torch.tensor([[0.3, 0.1, 0.2, 0.5], [1.0, 1.0, 1.0, 2.0], [3.0, torch.inf, 4.0, torch.inf]])
    hidden = confidence.isfinite()
    assert least_sure(confidence, hidden, 2).tolist() == [
        [False, True, True, False],
        [True, True, True, False],
        # At most all but one of those that were hidden.
        [True, False, False, False],
    ]
    assert least_sure(confidence, hidden, 2, count_of_first=True)[2].tolist() == [True, False, True, False]
    assert least_sure(confidence, hidden, 0).sum(1).tolist() == [1, 3, 1]


def test_noise_is_finite_at_the_ends() -> None:
    noise = gumbel_noise(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert bool(noise.isfinite().all())
    torch.testing.assert_close(noise[1], -torch.log(-torch.log(torch.tensor(0.5))))


@pytest.mark.parametrize("blocks", FORMS)
def test_known_ids_stay_and_all_are_ids(blocks: str) -> None:
    model, shown = small(blocks), []
    found = model.generate(
        LABELS,
        MaskedIdsSettings(num_steps=5),
        rng=seeded(),
        callback=lambda step, pyramid: shown.append((step, pyramid)),
    ).check_ids()
    assert [step for step, _ in shown] == list(range(5))
    assert [pyramid is None for _, pyramid in shown] == [True] * 4 + [False]
    assert torch.equal(shown[-1][1].levels[0], found.levels[0])


def test_a_sample_draws_by_itself() -> None:
    model, settings = small(), MaskedIdsSettings(num_steps=4, guidance_scale=3.0, guidance_schedule="muse_linear")
    whole = model.generate(LABELS, settings, rng=SampleRng.of(range(3))).levels[0]
    for index in range(3):
        alone = model.generate(LABELS[index : index + 1], settings, rng=SampleRng.of([index])).levels[0]
        assert torch.equal(alone[0], whole[index])


def test_guidance_off_costs_one_pass() -> None:
    model, sizes = small(), []
    model.transformer.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for overrides, expected in (
        ({}, [3, 3]),
        ({"guidance_schedule": "muse", "guidance_scale": 0.0}, [3, 3]),
        # The first step of this schedule has no guidance.
        ({"guidance_schedule": "muse_linear", "guidance_scale": 2.0}, [3, 6]),
        ({"guidance_schedule": "power_cosine", "guidance_scale": 2.0}, [3, 6]),
    ):
        sizes.clear()
        model.generate(LABELS, MaskedIdsSettings(num_steps=2, **overrides), rng=seeded())
        assert sizes == expected


def test_samples_without_a_class_need_dropped_labels() -> None:
    assert small().makes_unconditional
    assert small().generate(Unconditional(2), rng=seeded()).levels[0].shape == (2, 6)
    with pytest.raises(ValueError, match="expected labels: none was dropped in training"):
        small(class_dropout=0.0).generate(Unconditional(2))


@pytest.mark.parametrize("blocks", FORMS)
def test_saved_and_loaded_generates_the_same(blocks: str, tmp_path: Path) -> None:
    model = small(blocks)
    model.save_pretrained(tmp_path)
    loaded = MaskedIds.from_pretrained(tmp_path)
    found = [m.generate(LABELS, rng=seeded()).levels[0] for m in (model, loaded)]
    assert torch.equal(*found)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("blocks", FORMS)
def test_bfloat16_agrees_roughly(blocks: str) -> None:
    model, ids = small(blocks).eval(), torch.randint(14, (3, 6))
    wide = model(ids, LABELS)
    narrow = torch.nn.Module.to(model, torch.bfloat16)
    assert float((narrow(ids, LABELS) - wide).detach().abs().mean() / wide.detach().abs().mean()) < 0.1
    narrow.generate(LABELS, MaskedIdsSettings(guidance_scale=2.0), rng=seeded()).check_ids()


@pytest.mark.parametrize("blocks", FORMS)
def test_recomputed_activations_give_the_same_gradients(blocks: str) -> None:
    model, ids = small(blocks).train(), torch.randint(13, (3, 6))
    gradients: list[Tensor] = []
    for enabled in (False, True):
        if enabled:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model.loss(TokenPyramid((ids,), SPECS), LABELS, rng=seeded())["loss"].backward()
        gradients.append(model.token_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ({"blocks": "pre_norm"}, "blocks is 'pre_norm', expected 'post_norm' or 'skip'"),
        ({"blocks": "skip", "depth": 3}, "depth is 3, expected an even number for blocks with skips"),
        ({"num_heads": 3}, "num_heads is 3, expected a divisor of dim 16"),
        ({"class_dropout": 1.5}, "class_dropout is 1.5, expected 0 to 1"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1, expected 0 to 1"),
        (
            {"level_specs": specs_to_json([LevelSpec(4, dim=4)])},
            r"vocabularies \[None\], expected discrete levels of one vocabulary",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides: dict[str, Any], error: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=error):
        MaskedIds(**{**SMALL, **overrides})


def test_wrong_inputs_are_refused() -> None:
    model = small()
    with pytest.raises(ValueError, match="ids holds 5 tokens per sample, this generator's levels hold 6"):
        model(torch.zeros(1, 5, dtype=torch.int64), LABELS[:1])
    with pytest.raises(ValueError, match="class labels span 4 to 4, expected 0 to 3"):
        model.generate(torch.tensor([4]))
    other = (LevelSpec(6, dim=5, vocab_size=13),)
    with pytest.raises(ValueError, match="the pyramid's levels are"):
        model.loss(TokenPyramid((torch.zeros(1, 6, dtype=torch.int64),), other), LABELS[:1])
    torch.nn.init.constant_(model.head.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="MaskedIds gives NaN or infinity: logits at step 0 of 8"):
        model.generate(LABELS)
