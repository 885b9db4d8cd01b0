from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.bottlenecks.multiscale import MultiScaleQuantizer
from hiergen.generators.conditioning import Unconditional
from hiergen.generators.guidance import guide
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.generators.sampling import draw_ids
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json
from hiergen.seeding import SampleRng

GRIDS = ((1, 1), (2, 3), (4, 5))
SIZES = (1, 6, 20)
VOCAB, CLASSES, CODE = 19, 5, 6


def specs(grids: tuple[tuple[int, int], ...] = GRIDS) -> tuple[LevelSpec, ...]:
    return tuple(LevelSpec(height * width, (height, width), CODE, VOCAB) for height, width in grids)


def make(grids: tuple[tuple[int, int], ...] = GRIDS, **config: Any) -> NextScaleAR:
    """A small model all of whose parts matter, in eval mode."""
    sizes = {"num_classes": CLASSES, "dim": 24, "depth": 2, "num_heads": 2}
    model = NextScaleAR(**{"level_specs": specs_to_json(specs(grids)), **sizes, **config})
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            std = parameter.shape[1] ** -0.5 if parameter.ndim == 2 and "embedding" not in name else 0.7
            torch.nn.init.normal_(parameter, std=std)
    torch.nn.init.normal_(model.quantizer.codebook)
    return model.eval()


def random_pyramid(batch: int = 3) -> TokenPyramid:
    return TokenPyramid.split(torch.randint(VOCAB, (batch, sum(SIZES))), specs())


@pytest.mark.parametrize("shares_modulation", [False, True])
def test_a_level_changes_only_later_levels(shares_modulation: bool) -> None:
    model, labels = make(shares_modulation=shares_modulation), torch.arange(3)
    ids, start = random_pyramid().concat(), 0
    logits = model(ids, labels)
    for size in SIZES:
        changed = ids.clone()
        changed[:, start : start + size] = (ids[:, start : start + size] + 1) % VOCAB
        difference = (model(changed, labels) - logits).abs().amax(dim=(0, 2))
        assert difference[: start + size].max() == 0
        assert (difference[start + size :] > 0).all()
        start += size


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"guidance_scale": 3.0, "top_k": 5},
    {"guidance_scale": 2.0, "guidance_schedule": "constant", "top_p": 0.8},
    {"guidance_scale": 3.0, "greedy": True},
]


@pytest.mark.parametrize("config", [{}, {"shares_modulation": True, "use_qk_norm": False}, {"num_filters": 0}])
def test_generation_equals_teacher_forcing(config: dict[str, Any]) -> None:
    model, labels = make(**config), torch.tensor([1, 4, 4])
    for values in SETTINGS:
        settings = NextScaleSettings(**values)
        ids = model.generate(labels, settings, rng=torch.Generator().manual_seed(11)).concat()
        plain = NextScaleSettings(**values, use_cache=False)
        assert torch.equal(ids, model.generate(labels, plain, rng=torch.Generator().manual_seed(11)).concat())
        # All tokens at once, from the full pass over the result; only the draws are made level by level.
        conditional, null = model(ids, labels).detach(), model(ids, torch.full_like(labels, CLASSES)).detach()
        rng, start = torch.Generator().manual_seed(11), 0
        for level, size in enumerate(SIZES):
            scale = settings.guidance_scale
            if settings.guidance_schedule == "official":
                scale = 1 + (settings.guidance_scale - 1) * level / 2
            guided = guide(conditional, null, scale) if settings.is_guided else conditional
            part = slice(start, start + size)
            assert torch.equal(draw_ids(guided[:, part], settings, rng=rng), ids[:, part])
            start += size


def test_guidance_rises_from_none_at_the_first_level() -> None:
    assert NextScaleSettings.published().scales(4) == (1.0, 1.5, 2.0, 2.5)
    assert [NextScaleSettings.published().top_k, NextScaleSettings.published().top_p] == [900, 0.96]
    assert not NextScaleSettings().is_guided


@pytest.mark.parametrize("values", [{"guidance_scale": 3.0}, {"guidance_scale": 2.0, "smooth": True}], ids=str)
def test_the_first_levels_of_a_stopped_run_are_those_of_a_full_one(values: dict[str, Any]) -> None:
    model, labels = make(), torch.tensor([0, 3])
    full = model.generate(labels, NextScaleSettings(**values), rng=torch.Generator().manual_seed(2))
    for count in (1, 2):
        stopped = model.generate(
            labels, NextScaleSettings(**values, num_levels=count), rng=torch.Generator().manual_seed(2)
        )
        assert stopped.specs == full.specs[:count]
        assert all(torch.equal(*pair) for pair in zip(stopped.levels, full.levels[:count], strict=True))


def test_the_callback_sees_complete_levels() -> None:
    seen: list[tuple[int, int]] = []
    made = make().generate(torch.tensor([2]), callback=lambda step, found: seen.append((step, len(found or ()))))
    assert seen == [(0, 1), (1, 2), (2, 3)]
    assert made.specs == specs()


def test_smooth_levels_are_mixtures() -> None:
    model, labels = make(), torch.tensor([0, 3])
    made = model.generate(labels, NextScaleSettings(smooth=True), rng=torch.Generator().manual_seed(2))
    assert made.specs == tuple(dataclasses.replace(spec, vocab_size=None) for spec in specs())
    # The ids of a level are drawn before its mixtures.
    rng = torch.Generator().manual_seed(2)
    logits = model(torch.zeros(2, 27, dtype=torch.int64), labels)[:, :1].detach()
    torch.empty(logits.shape).exponential_(generator=rng)
    noise = -torch.empty(logits.shape).exponential_(generator=rng).log()
    weights = ((logits + noise) / 0.27).softmax(dim=-1)
    torch.testing.assert_close(made.levels[0], weights @ model.quantizer.codebook)


def test_samples_do_not_depend_on_their_batch() -> None:
    model, settings = make(), NextScaleSettings(guidance_scale=2.0)
    together = model.generate(torch.tensor([1, 2, 3]), settings, rng=SampleRng.of([7, 8, 9], "x"))
    alone = model.generate(torch.tensor([2]), settings, rng=SampleRng.of([8], "x"))
    assert torch.equal(together.concat()[1:2], alone.concat())
    none = model.generate(Unconditional(2), settings, rng=torch.Generator().manual_seed(0))
    assert none.batch_size == 2


def test_loss_is_the_mean_over_all_tokens() -> None:
    model, pyramid, labels = make(label_smoothing=0.1), random_pyramid(), torch.tensor([0, 1, 4])
    losses = model.loss(pyramid, labels)
    log_p, ids = model(pyramid.concat(), labels).log_softmax(dim=-1), pyramid.concat()
    each = -0.9 * log_p.gather(-1, ids[..., None])[..., 0] - 0.1 * log_p.mean(dim=-1)
    torch.testing.assert_close(losses["loss"], each.mean())
    torch.testing.assert_close(losses["tail_loss"], each[:, -20:].mean())
    hits = (log_p.argmax(dim=-1) == ids).float()
    assert (losses["accuracy"], losses["tail_accuracy"]) == (hits.mean(), hits[:, -20:].mean())


def test_labels_and_branches_are_dropped_in_train_mode_alone() -> None:
    model, pyramid, labels = make(class_dropout=0.5, drop_path=0.9), random_pyramid(), torch.tensor([0, 1, 4])
    settled = [model.loss(pyramid, labels, rng=torch.Generator().manual_seed(k))["loss"] for k in range(2)]
    assert settled[0] == settled[1]
    model.train()
    for block in model.blocks:
        block.drop_path = 0.0
    drawn = {
        float(model.loss(pyramid, labels, rng=torch.Generator().manual_seed(k))["loss"].detach()) for k in range(8)
    }
    assert len(drawn) > 2
    # A branch that is kept counts for those that are not.
    block = model.blocks[1]
    block.drop_path = 0.75
    kept = block._keep(torch.ones(4000, 2, 3))
    assert set(kept.unique().tolist()) == {0.0, 4.0}
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))
    assert kept.mean() == pytest.approx(1.0, abs=0.1)


def test_initial_weights() -> None:
    model = NextScaleAR(level_specs=specs_to_json(specs()), dim=96, depth=8, num_heads=2, gate_init=1e-2)
    std = (1 / 288) ** 0.5
    block = model.blocks[3]
    for weight, factor in (
        (model.code_proj.weight, 1.0),
        (model.class_embedding.weight, 1.0),
        (model.position_embedding, 1.0),
        (block.attention.qkv.weight, 1.0),
        (block.attention.proj.weight, 0.25),
        (block.ffn.fc2.weight, 0.25),
        (block.modulation.weight[:192], 1e-2),
        (block.modulation.weight[192:], 0.5),
        (model.head_modulation.weight, 0.5),
        (model.head.weight, 0.02),
    ):
        assert float(weight.detach().std()) == pytest.approx(factor * std, rel=0.1)
    assert torch.equal(block.attention.log_scale, torch.full((2,), math.log(4)))
    shared = NextScaleAR(level_specs=specs_to_json(specs()), dim=96, depth=8, num_heads=2, shares_modulation=True)
    offset = torch.stack([block.modulation_offset.detach() for block in shared.blocks])
    assert float(offset[:, :192].std()) == pytest.approx(1e-3 * 96**-0.5, rel=0.1)
    assert float(offset[:, 192:].std()) == pytest.approx(0.5 * 96**-0.5, rel=0.1)
    assert float(shared.shared_modulation.weight.detach().std()) == pytest.approx(std, rel=0.1)


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    loaded = NextScaleAR.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.quantizer.parameters())
    ids = [m.generate(torch.tensor([1]), rng=torch.Generator().manual_seed(3)).concat() for m in (model, loaded)]
    assert torch.equal(*ids)
    half = NextScaleAR.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.quantizer.codebook.dtype == torch.float32
    assert half.to(torch.float16).quantizer.codebook.dtype == torch.float32


def test_checkpointing_changes_no_gradient() -> None:
    model, pyramid, labels = make().train(), random_pyramid(), torch.tensor([0, 1, 4])
    for block in model.blocks:
        block.drop_path = 0.0
    gradients = []
    for is_on in (False, True):
        if is_on:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model.loss(pyramid, labels, rng=torch.Generator().manual_seed(1))["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        assert all(p.grad is None for p in model.quantizer.parameters())
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())


def test_the_quantizer_is_copied() -> None:
    model, theirs = make(), MultiScaleQuantizer(VOCAB, CODE, GRIDS)
    assert model.take_quantizer(theirs) is model
    assert torch.equal(model.quantizer.codebook, theirs.codebook)
    assert torch.equal(model.quantizer.filters[3].weight, theirs.filters[3].weight)
    theirs.codebook.data.zero_()
    assert model.quantizer.codebook.abs().sum() > 0
    for other in (
        MultiScaleQuantizer(VOCAB, CODE, GRIDS[1:]),
        MultiScaleQuantizer(VOCAB, CODE, GRIDS, filter_ratio=0.25),
        MultiScaleQuantizer(VOCAB, CODE, GRIDS, num_filters=2),
    ):
        with pytest.raises(ValueError, match=r"the tokenizer's quantizer has grids .*; this generator expects"):
            model.take_quantizer(other)
    with pytest.raises(ValueError, match=r"quantizer has codebook of \(7, 6\), this generator expects \(19, 6\)"):
        model.take_quantizer(MultiScaleQuantizer(7, CODE, GRIDS))


def test_errors() -> None:
    model, ids = make(), random_pyramid().concat()
    with pytest.raises(ValueError, match="ids holds 26 tokens per sample, this generator's levels hold 27"):
        model(ids[:, 1:], torch.arange(3))
    with pytest.raises(ValueError, match=r"condition has shape \(2,\), expected \(3,\)"):
        model(ids, torch.arange(2))
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"num_levels is {count}, expected 1 to 3"):
            model.generate(torch.tensor([1]), NextScaleSettings(num_levels=count))
    with pytest.raises(ValueError, match="the pyramid's levels are"):
        model.loss(random_pyramid().prefix(2), torch.arange(3))
    with pytest.raises(ValueError, match="smooth is True beside greedy"):
        NextScaleSettings(smooth=True, greedy=True)
    with pytest.raises(ValueError, match="num_heads is 5, expected a divisor of dim 24"):
        make(num_heads=5)
    with pytest.raises(ValueError, match=r"level 0 has the grid None, expected \(height, width\)"):
        NextScaleAR(level_specs=[{"num_tokens": 1, "grid": None, "dim": 4, "vocab_size": 3}])
    mixed = [{"num_tokens": 1, "grid": [1, 1], "dim": dim, "vocab_size": 3} for dim in (4, 5)]
    with pytest.raises(ValueError, match=r"vocabularies and channels \[\(3, 4\), \(3, 5\)\], expected discrete levels"):
        NextScaleAR(level_specs=mixed)
    model.head.weight.data[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="NextScaleAR gives NaN or infinity: logits at level 0 of 3"):
        model.generate(torch.tensor([1]))
