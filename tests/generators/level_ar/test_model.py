from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

SIZES = (1, 1, 2, 4, 8)
VOCAB, CLASSES = 19, 5


def specs(sizes: tuple[int, ...] = SIZES) -> tuple[LevelSpec, ...]:
    return tuple(LevelSpec(num_tokens=size, dim=8, vocab_size=VOCAB) for size in sizes)


def make(**config: Any) -> LevelAR:
    """A small model whose head is not zero, so that logits say something, in eval mode."""
    sizes = {"num_classes": CLASSES, "dim": 24, "depth": 2, "num_heads": 2, "ffn_dim": 40}
    model = LevelAR(**{"level_specs": specs_to_json(specs()), **sizes, **config})
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return model.eval()


def random_pyramid(batch: int = 3) -> TokenPyramid:
    return TokenPyramid.split(torch.randint(VOCAB, (batch, sum(SIZES))), specs())


LAYOUTS: list[dict[str, Any]] = [*({"num_ar_tokens": count} for count in (1, 2, 4, 8, 16)), {"layout": "token"}]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_level_changes_only_later_groups(layout: dict[str, Any]) -> None:
    model = make(**layout)
    ids, labels = random_pyramid().concat(), torch.arange(3)
    logits = model(ids, labels)
    start = 0
    for size in SIZES:
        changed = ids.clone()
        changed[:, start : start + size] = (ids[:, start : start + size] + 1) % VOCAB
        difference = (model(changed, labels) - logits).abs().amax(dim=(0, 2))
        # A level that is one group reads none of its own tokens; single tokens do, each those before it.
        first = start + 1 if layout.get("layout") or start < layout["num_ar_tokens"] else start + size
        assert difference[:first].max() == 0
        assert (difference[first:] > 0).all()
        start += size


def test_logits_depend_on_the_class_and_not_on_the_batch() -> None:
    model = make().double()
    ids, labels = random_pyramid().concat(), torch.tensor([0, 1, CLASSES])
    logits = model(ids, labels)
    for sample in range(3):
        alone = model(ids[sample : sample + 1], labels[sample : sample + 1])
        torch.testing.assert_close(alone[0], logits[sample], rtol=1e-12, atol=1e-12)
    assert ((model(ids, labels.roll(1)) - logits).abs().amax(dim=(0, 2)) > 1e-3).all()


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"guidance_scale": 3.0, "guidance_schedule": "linear_constant", "top_k": 5},
    {"guidance_scale": 2.0, "guidance_schedule": "cosine_re", "top_p": 0.8},
    {"guidance_scale": 2.0, "guidance_interval": 2},
    {"guidance_scale": 3.0, "greedy": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_generation_equals_teacher_forcing_with_the_seeds_of_multinomial(layout: dict[str, Any]) -> None:
    model, labels = make(**layout), torch.tensor([1, 4, 4])
    for values in SETTINGS:
        settings = LevelARSettings(**values)
        ids = model.generate(labels, settings, rng=torch.Generator().manual_seed(11)).concat()
        again = model.generate(
            labels, LevelARSettings(**values, use_cache=False), rng=torch.Generator().manual_seed(11)
        ).concat()
        assert torch.equal(ids, again)
        # All tokens at once, from the full pass over the result; only the draws are made step by step.
        conditional, null = model(ids, labels).detach(), model(ids, torch.full_like(labels, CLASSES)).detach()
        rng, num_steps, start = torch.Generator().manual_seed(11), model.num_steps, 0
        for step in range(num_steps):
            end = start + 1 if layout.get("layout") or start < layout["num_ar_tokens"] else 2 * start
            scale = settings.scale_at(step / (num_steps - 1)) if settings.is_guided else 1.0
            if 0 <= settings.guidance_interval < start:
                scale = 1.0
            guided = (null + scale * (conditional - null))[:, start:end]
            assert torch.equal(plain_draw(guided, settings, rng), ids[:, start:end])
            start = end


def plain_draw(logits: torch.Tensor, settings: LevelARSettings, rng: torch.Generator) -> torch.Tensor:
    """Filter row by row, then one multinomial call."""
    rows = []
    for row in (logits / settings.temperature).flatten(0, 1):
        order = row.argsort(descending=True)
        count = settings.top_k or len(row)
        total = row.softmax(0)[order].cumsum(0)
        keep = order[: min(count, 1 + int((total <= settings.top_p).sum()))]
        rows.append(torch.full_like(row, -math.inf).index_copy(0, keep, row[keep]).softmax(0))
    probabilities = torch.stack(rows)
    drawn = probabilities.argmax(-1) if settings.greedy else torch.multinomial(probabilities, 1, generator=rng)
    return drawn.view(logits.shape[:2])


@pytest.mark.parametrize("layout", [{}, {"num_ar_tokens": 8}, {"layout": "token"}])
def test_stopping_early_gives_a_prefix(layout: dict[str, Any]) -> None:
    model, labels = make(**layout), torch.tensor([0, 3])
    values = {"guidance_scale": 2.0, "guidance_schedule": "linear"}
    full = model.generate(labels, LevelARSettings(**values), rng=torch.Generator().manual_seed(2))
    assert full.specs == model.specs
    for num_levels in range(1, len(SIZES)):
        settings = LevelARSettings(**values, num_levels=num_levels)
        prefix = model.generate(labels, settings, rng=torch.Generator().manual_seed(2))
        assert prefix.specs == model.specs[:num_levels]
        assert torch.equal(prefix.concat(), full.prefix(num_levels).concat())


def test_callback_sees_the_levels_as_they_complete() -> None:
    model, seen = make(num_ar_tokens=8), []
    model.generate(
        torch.tensor([1]), callback=lambda step, levels, **_: seen.append((step, len(levels) if levels else 0))
    )
    # Eight single tokens complete levels of 1, 1, 2, 4 tokens; one step makes the last eight.
    assert seen == list(enumerate([1, 2, 2, 3, 3, 3, 3, 4, 5]))
    coarse = LevelAR(level_specs=specs_to_json(specs((4, 4))), dim=8, depth=1, num_heads=1, num_classes=2)
    first: list[TokenPyramid | None] = []
    coarse.generate(torch.tensor([1]), callback=lambda _, levels, **__: first.append(levels))
    assert [len(levels) if levels else None for levels in first] == [None, None, None, 1, 2]


def test_each_step_computes_only_what_it_needs() -> None:
    model, blocks, heads = make(), [], []
    model.blocks[0].register_forward_hook(lambda _, args, __: blocks.append(tuple(args[0].shape[:2])))
    model.head.register_forward_hook(lambda _, args, __: heads.append(tuple(args[0].shape[:2])))
    labels = torch.tensor([1, 2, 3])
    groups = [1, 1, 1, 1, 4, 8]
    model.generate(labels, LevelARSettings(guidance_scale=1.0))
    assert blocks == heads == [(3, size) for size in groups]
    blocks.clear(), heads.clear()
    # Past token 3 guidance is off, so the second half of the batch ends there.
    model.generate(labels, LevelARSettings(guidance_scale=2.0, guidance_interval=3))
    assert blocks == heads == [(6, 1)] * 4 + [(3, 4), (3, 8)]
    blocks.clear(), heads.clear()
    model.generate(labels, LevelARSettings(guidance_scale=2.0, use_cache=False))
    assert blocks == [(6, end) for end in (1, 2, 3, 4, 8, 16)]
    assert heads == [(6, size) for size in groups]


def test_generation_has_no_dropout_and_keeps_the_mode() -> None:
    model, labels = make(embedding_dropout=0.9), torch.tensor([1, 2])
    wanted = model.generate(labels, rng=torch.Generator().manual_seed(4)).concat()
    model.train()
    assert torch.equal(model.generate(labels, rng=torch.Generator().manual_seed(4)).concat(), wanted)
    assert model.training
    assert all(module.training for module in model.modules())


def test_loss_is_cross_entropy_and_exact_matches() -> None:
    model, pyramid, labels = make(), random_pyramid(), torch.tensor([0, 1, 2])
    result = model.loss(pyramid, labels)
    ids, logits = pyramid.concat(), model(pyramid.concat(), labels).detach().double()
    rows = [(b, p) for b in range(3) for p in range(16)]
    wanted = sum(-logits[b, p].log_softmax(0)[ids[b, p]] for b, p in rows) / len(rows)
    assert result["loss"].item() == pytest.approx(float(wanted), rel=1e-5)
    exact = sum(int(logits[b, p].argmax()) == int(ids[b, p]) for b, p in rows) / len(rows)
    assert float(result["accuracy"]) == pytest.approx(exact)
    assert not result["accuracy"].requires_grad


def test_a_new_model_is_uniform() -> None:
    config = {"num_classes": CLASSES, "dim": 24, "depth": 1, "num_heads": 2}
    model = LevelAR(level_specs=specs_to_json(specs()), **config)
    assert model.loss(random_pyramid(), torch.tensor([0, 1, 2]))["loss"].item() == pytest.approx(math.log(VOCAB))
    for embedding in (model.class_embedding, model.token_embedding, model.special_embedding):
        assert embedding is not None
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_class_dropout() -> None:
    still = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "ffn_dropout": 0.0}
    model, pyramid, labels = make(class_dropout=1.0, **still), random_pyramid(), torch.tensor([0, 1, 2])
    kept = model.loss(pyramid, labels)["loss"]
    null = model.loss(pyramid, torch.full_like(labels, CLASSES))["loss"]
    assert kept != null
    model.train()
    assert model.loss(pyramid, labels)["loss"] == null
    model.register_to_config(class_dropout=0.5)
    drawn = {model.loss(pyramid, labels, rng=torch.Generator().manual_seed(s))["loss"].item() for s in range(30)}
    # Three labels, each dropped or not: eight batches, all of which thirty draws find but for odds of one in seven.
    assert 5 <= len(drawn) <= 8
    same = [model.loss(pyramid, labels, rng=torch.Generator().manual_seed(6))["loss"] for _ in range(2)]
    assert same[0] == same[1]
    model.register_to_config(class_dropout=0.0)
    assert model.loss(pyramid, labels)["loss"] == kept


@pytest.mark.parametrize("layout", [{}, {"layout": "token"}])
def test_save_and_load(layout: dict[str, Any], tmp_path: Path) -> None:
    model = make(**layout)
    model.save_pretrained(tmp_path)
    loaded = LevelAR.from_pretrained(tmp_path)
    assert loaded.specs == model.specs
    assert dict(loaded.config).items() >= layout.items()
    ids = random_pyramid().concat()
    torch.testing.assert_close(loaded(ids, torch.arange(3)), model(ids, torch.arange(3)), rtol=1e-4, atol=1e-5)


def test_special_rows() -> None:
    published = make()
    assert published.special_embedding is not None
    assert published.special_embedding.num_embeddings == 15
    short = make(num_special_tokens=7)
    short.load_state_dict(
        {n: x[:7] if n == "special_embedding.weight" else x for n, x in published.state_dict().items()}
    )
    ids = random_pyramid().concat()
    assert torch.equal(short(ids, torch.arange(3)), published(ids, torch.arange(3)))
    assert make(layout="token").special_embedding is None


def test_gradient_checkpointing_changes_nothing() -> None:
    model, pyramid, labels = make(), random_pyramid(), torch.arange(3)
    gradients, calls = [], []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(0))
    for _ in range(2):
        model.zero_grad()
        model.loss(pyramid, labels)["loss"].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        model.enable_gradient_checkpointing()
    # Once, then once more for the backward pass.
    assert len(calls) == 3
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_training_works_after_inference_mode() -> None:
    # Masks and tables may be kept from call to call; one made in inference mode could take no part in training.
    model = make(level_specs=specs_to_json(specs((1, 1, 2, 4, 8, 16))), rope_theta=77.0)
    with torch.inference_mode():
        pyramid = model.generate(torch.tensor([1, 2]), LevelARSettings(use_cache=False))
        model(pyramid.concat(), torch.tensor([1, 2]))
    ids = pyramid.concat().clone()
    model.loss(TokenPyramid.split(ids, model.specs), torch.tensor([1, 2]))["loss"].backward()


def test_bfloat16_and_autocast() -> None:
    model, labels = make(), torch.tensor([1, 2, 3])
    ids = random_pyramid().concat()
    wanted = model(ids, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(ids, labels).float(), wanted, rtol=0, atol=0.15)
        assert model.generate(labels, LevelARSettings(guidance_scale=2.0)).batch_size == 3
    model.to(torch.bfloat16)
    assert model(ids, labels).dtype == torch.bfloat16
    torch.testing.assert_close(model(ids, labels).float(), wanted, rtol=0, atol=0.15)
    assert model.generate(labels, LevelARSettings(guidance_scale=2.0)).batch_size == 3


def test_one_batch_can_be_overfitted() -> None:
    pyramid, labels = random_pyramid(2), torch.tensor([0, 1])
    model = make(dim=32, embedding_dropout=0.0, attention_dropout=0.0, ffn_dropout=0.0, class_dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        result = model.loss(pyramid, labels)
        result["loss"].backward()
        optimizer.step()
    assert model.loss(pyramid, labels)["accuracy"] == 1
    generated = model.generate(labels, LevelARSettings(greedy=True))
    assert torch.equal(generated.concat(), pyramid.concat())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"level_specs": specs_to_json([LevelSpec(4, dim=8)])},
            r"vocabularies \[None\], expected discrete levels of one vocabulary; continuous tokens are for the recipes mar-tiny, mar-tiny-levels "
            r"and flow-tiny$",
        ),
        (
            {"level_specs": specs_to_json([LevelSpec(1, vocab_size=4), LevelSpec(3, vocab_size=5)])},
            r"vocabularies \[4, 5\], expected discrete levels of one vocabulary$",
        ),
        ({"level_specs": specs_to_json(specs((4, 1, 3)))}, r"level 1 ends after 5 tokens, inside a step; steps end at"),
        ({"level_specs": specs_to_json(specs((4, 8)))}, "hold 12 tokens"),
        ({"layout": "raster"}, "layout is 'raster', expected 'level' or 'token'"),
        ({"num_heads": 5}, r"dim is 24, expected a multiple of 2 \* num_heads = 10"),
        ({"num_special_tokens": 6}, "num_special_tokens is 6, the layout reads 7"),
        ({"rotary": "axial"}, "rotary is 'axial', expected 'sequence' or 'grid'"),
        (
            {"rotary": "grid", "layout": "token"},
            r"rotary is 'grid', but layout is 'token' and the grids are \[None, None",
        ),
        (
            {"rotary": "grid", "level_specs": specs_to_json([LevelSpec(16, (4, 4), 8, VOCAB)])},
            r"rotary is 'grid', but layout is 'level' and the grids are \[\(4, 4\)\]",
        ),
    ],
)
def test_config_errors(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**config)


def test_call_errors() -> None:
    model, pyramid = make(), random_pyramid(2)
    with pytest.raises(ValueError, match="ids holds 8 tokens per sample, this generator's levels hold 16"):
        model(pyramid.prefix(4).concat(), torch.arange(2))
    with pytest.raises(ValueError, match=r"condition has shape \(3,\), expected \(2,\), one per sample"):
        model(pyramid.concat(), torch.arange(3))
    with pytest.raises(ValueError, match="this generator was trained for"):
        model.loss(pyramid.prefix(4), torch.arange(2))
    with pytest.raises(ValueError, match="class labels span 0 to 5, expected 0 to 4"):
        model.generate(torch.tensor([0, CLASSES]))
    for num_levels in (0, 6):
        with pytest.raises(ValueError, match=f"num_levels is {num_levels}, expected 1 to 5"):
            model.generate(torch.tensor([0]), LevelARSettings(num_levels=num_levels))


def test_settings() -> None:
    assert LevelAR.make_settings(top_p=0.9) == LevelARSettings(top_p=0.9)
    published = LevelARSettings.published()
    assert published.scales(9) == (1.0001, 1.0001, *[3.75] * 7)
    assert (published.top_p, published.top_k, published.temperature) == (0.95, 0, 1.0)
