"""Block Transformer: what sees what, caches, packed rows, and the sizes of the published models."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from hiergen.generators.sequences.block.embedders import EmbedderKind
from hiergen.generators.sequences.block.model import BlockTransformer
from hiergen.generators.sequences.block.token_decoders import TokenDecoderKind
from hiergen.generators.sequences.settings import SequenceSettings, TextSettings
from hiergen.generators.sequences.texts import Texts
from hiergen.levels import LevelSpec, specs_to_json
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.seeding import SampleRng

SIZES: dict[str, Any] = {
    "dim": 16, "depth": 2, "num_heads": 2, "token_dim": 32, "token_heads": 2, "embedder_dim": 8, "embedder_depth": 1,
    "embedder_heads": 2, "embedder_ffn_dim": 16,
}  # fmt: skip
KINDS = list(itertools.product(get_args(EmbedderKind), get_args(TokenDecoderKind)))
SPECS = specs_to_json([LevelSpec(1, vocab_size=9), LevelSpec(2, vocab_size=9), LevelSpec(4, vocab_size=9)])


def make(**changes: Any) -> BlockTransformer:
    torch.manual_seed(0)
    model = BlockTransformer(**{**SIZES, **changes}).eval()
    # Wide enough that everything moves the logits.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_ids(batch: int, count: int, seed: int = 1, most: int = 250) -> Tensor:
    return torch.randint(2, most, (batch, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("embedder", "token_decoder"), KINDS)
def test_logits_follow_earlier_ids_alone_and_equal_the_cache(embedder: str, token_decoder: str) -> None:
    model, ids = make(embedder=embedder, token_decoder=token_decoder), some_ids(2, 11)
    with torch.no_grad():
        logits = model(ids)
        assert logits.shape == (2, 11, 256)
        for place in (0, 3, 4, 7, 10):
            changed = ids.clone()
            changed[:, place] += 1
            moved = (model(changed) - logits).abs().amax(dim=(0, 2)) > 1e-6
            assert not moved[:place].any()
            # The last id of a block reaches the next ids through the context alone.
            assert moved[place:].any()
        cache = model.start_cache(2, 11)
        steps = [model.prefill(ids[:, :3], None, cache), *(model.step(ids[:, t], cache) for t in range(3, 11))]
    torch.testing.assert_close(torch.stack(steps, dim=1), logits[:, 2:], atol=1e-5, rtol=1e-5)


def test_rows_of_different_lengths_go_on_where_they_stand() -> None:
    model, ids = make(), some_ids(4, 21)
    lengths = torch.tensor([1, 4, 6, 8])
    with torch.no_grad():
        cache = model.start_cache(4, 21)
        found = [model.prefill(ids[:, :8], lengths, cache)]
        rows = torch.arange(4)
        found += [model.step(ids[rows, lengths + t], cache) for t in range(12)]
        wanted = model(ids)[rows[:, None], lengths[:, None] - 1 + torch.arange(13)]
    torch.testing.assert_close(torch.stack(found, dim=1), wanted, atol=1e-5, rtol=1e-5)


def test_a_cache_is_not_longer_than_asked_for() -> None:
    model, ids = make(), some_ids(1, 13)
    cache = model.start_cache(1, 4)
    model.prefill(ids[:, :11], None, cache)
    with pytest.raises(ValueError, match="the cache holds 3 tokens of each row, one at 3 was given"):
        model.step(ids[:, 11], cache)


def test_padding_changes_nothing_and_packed_texts_are_single_ones() -> None:
    model = make()
    ids = some_ids(1, 20)
    with torch.no_grad():
        single = model(ids[:, :8])
        padded = model(torch.cat((ids[:, :8], torch.zeros(1, 6, dtype=torch.int64)), dim=1), torch.tensor([8]))
        torch.testing.assert_close(padded[:, :8], single)
        starts = torch.zeros(1, 20, dtype=torch.bool)
        starts[0, [0, 8]] = True
        packed = model(ids, starts=starts)
        torch.testing.assert_close(packed[:, :7], single[:, :7])
        torch.testing.assert_close(packed[:, 8:], model(ids[:, 8:]), atol=1e-5, rtol=1e-5)
        whole = model(ids)
        assert (whole[:, 8:] - packed[:, 8:]).abs().max() > 1e-3


def test_the_first_block_of_published_models_is_context_alone() -> None:
    model, ids = make(first_block="context"), some_ids(2, 10)
    found = model.predict(ids)
    assert found.unscored == 3
    assert not found.logits[:, :3].any()
    loss = model.loss(Texts(ids))["bits_per_byte"] * torch.log(torch.tensor(2.0))
    logits = model(ids[:, :-1])[:, 3:]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten()))
    cache = model.start_cache(2, 10)
    torch.testing.assert_close(model.prefill(ids[:, :4], None, cache), model(ids)[:, 3], atol=1e-5, rtol=1e-5)


def test_official_positions_differ_from_the_trained_ones_with_a_longer_prefix_alone() -> None:
    for prefix_length, differs in ((2, True), (1, False)):
        model = make(generation_positions="official", prefix_length=prefix_length)
        ids, cache = some_ids(1, 6), model.start_cache(1, 6)
        steps = [model.prefill(ids[:, :4], None, cache), *(model.step(ids[:, t], cache) for t in (4, 5))]
        gap = (torch.stack(steps, dim=1) - model(ids)[:, 3:]).abs().max()
        assert bool(gap > 1e-3) == differs, gap


def test_left_padding_is_hidden() -> None:
    """As the released program pads prompts: what lies under the padding does not matter to an embedder that masks."""
    model, ids = make(embedder="roberta_cls"), some_ids(1, 8)
    seen = torch.ones(1, 8, dtype=torch.bool)
    seen[:, :2] = False
    other = torch.cat((ids[:, :2] + 1, ids[:, 2:]), dim=1)
    torch.testing.assert_close(
        model.predict(ids, seen=seen).logits[:, 2:], model.predict(other, seen=seen).logits[:, 2:]
    )


def test_a_batch_is_its_texts_one_by_one() -> None:
    model, prompts = make(), ["a", "some longer prompt", ""]
    for use_cache in (True, False):
        settings = TextSettings(max_new_bytes=10, use_cache=use_cache)
        together = model.generate_text(prompts, settings, rng=SampleRng.of(range(3), "x"))
        assert together == [
            model.generate_text(prompt, settings, rng=SampleRng.of([index], "x"))[0]
            for index, prompt in enumerate(prompts)
        ]


def test_levels_by_class() -> None:
    model = make(level_specs=SPECS, num_classes=3, block_length=3, dim=48)
    made = [
        model.generate(
            torch.tensor([0, 2]), SequenceSettings(guidance_scale=1.5, use_cache=use), rng=SampleRng.of([0, 1], 1)
        )
        for use in (True, False)
    ]
    assert torch.equal(made[0].concat(), made[1].concat())
    labels = torch.tensor([0, 1])
    pyramid = TokenPyramid.split(some_ids(2, 7, most=9), model.specs)
    logits = model(pyramid.concat()[:, :6], None, labels)
    assert logits.shape == (2, 7, 9)
    assert (logits - model(pyramid.concat()[:, :6], None, labels.flip(0))).abs().amax(dim=(0, 2)).min() > 1e-4
    model.train().loss(pyramid, labels, rng=torch.Generator().manual_seed(0))["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_checkpointing_changes_no_gradient() -> None:
    model, texts = make().train(), Texts(some_ids(2, 12))
    grads = []
    for _ in range(2):
        model.zero_grad()
        model.loss(texts)["loss"].backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.enable_gradient_checkpointing()
    assert len(grads[0]) == len(list(model.parameters()))
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


PUBLISHED = {
    "block-5m": 33_846_272,
    "block-19m": 77_391_872,
    "block-85m": 173_164_032,
    "block-302m": 420_313_088,
    "block-805m": 1_045_934_080,
    "block-1200m": 1_448_800_256,
    "block-85m-prefix1": 172_573_440,
    "block-85m-roberta": 179_081_728,
    "block-85m-summation": 180_656_896,
    "block-85m-cross": 156_132_736,
    "block-megabyte-5m": 20_971_520,
    "block-megabyte-85m": 153_323_264,
    "block-85m-uptrained": 204_499_200,
    "block-85m-single": 201_548_544,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


def test_bad_input_is_named() -> None:
    model, ids = make(), some_ids(1, 8)
    inside = torch.zeros(1, 8, dtype=torch.bool)
    inside[0, 3] = True
    published = make(first_block="context")
    cases: list[tuple[str, Any]] = [
        ("embedder is 'bert', expected one of lookup", lambda: make(embedder="bert")),
        ("token_decoder is 'sum', expected one of prefix", lambda: make(token_decoder="sum")),
        ("first_block is 'none', expected one of learned", lambda: make(first_block="none")),
        ("generation_positions is 'x', expected one of trained", lambda: make(generation_positions="x")),
        ("block_length is 0, expected at least 1", lambda: make(block_length=0)),
        ("dim is 16, expected a multiple of block_length 3", lambda: make(block_length=3)),
        ("begin_id is 256, expected 0 to 255", lambda: make(begin_id=256)),
        (
            "first_block is 'context', expected 'learned'",
            lambda: make(level_specs=SPECS, num_classes=2, first_block="context"),
        ),
        ("a text that begins inside a block, expected multiples of 4", lambda: model(ids, starts=inside)),
        ("starts was given, but first_block is 'context'", lambda: published(ids, starts=inside)),
        ("ids holds 3 ids, expected at least the 4", lambda: published(ids[:, :3])),
        ("the shortest text holds 3 ids", lambda: published.prefill(ids[:, :3], None, published.start_cache(1, 8))),
        ("rotary_dim is 1, expected an even number", lambda: make(num_heads=4)),
    ]
    for match, call in cases:
        with pytest.raises(ValueError, match=match):
            call()
