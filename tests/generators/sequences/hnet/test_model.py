"""H-Net as a whole: forms that agree, causality, ragged and packed rows, caches, losses, sizes, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.settings import TextSettings
from hiergen.generators.sequences.texts import Texts
from hiergen.levels import LevelSpec, specs_to_json
from hiergen.registry import create, get_preset, list_presets, model_class
from hiergen.seeding import SampleRng

MAMBA: dict[str, Any] = {"state_dim": 4, "head_dim": 4, "chunk_size": 4}
ONE: dict[str, Any] = {"layout": ["m1T1", ["T1m1"], "M1t1"], "dims": [8, 12], "num_heads": [2, 2], "windows": [3, None]}
TWO: dict[str, Any] = {
    "layout": ["m1", ["T1m1", ["T1"], "m1T1"], "m1"],
    "dims": [8, 8, 12],
    "num_heads": [2, 2, 2],
    "windows": [None, 2, None],
}
FLAT: dict[str, Any] = {"layout": ["T1m1"], "dims": [8], "num_heads": [2]}
LAYOUTS = {"one": ONE, "two": TWO, "flat": FLAT}
N, V = 14, 16


def build(layout: dict[str, Any], **settings: Any) -> HNet:
    """A model in which every tensor matters, float64."""
    torch.manual_seed(0)
    model = HNet(**{**MAMBA, "vocab_size": V, **layout, **settings}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name or "residual" in name or "padding" in name or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "stages" in name and parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def ids(batch: int = 3, count: int = N) -> Tensor:
    return torch.randint(V, (batch, count), generator=torch.Generator().manual_seed(1))


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=LAYOUTS)
def model(request: pytest.FixtureRequest) -> HNet:
    return build(LAYOUTS[request.param])


def test_chunks_are_some_of_the_symbols_and_nest() -> None:
    found = build(TWO).find_boundaries(ids())
    assert len(found) == 2
    outer, inner = found
    assert outer[:, 0].all()
    assert inner[:, 0].all()
    assert (inner <= outer).all()
    assert N * 3 > outer.sum() > inner.sum() > 3


def test_nothing_before_a_changed_symbol_changes(model: HNet) -> None:
    given = ids()
    changed = given.clone()
    changed[:, 6] = (changed[:, 6] + 1) % V
    difference = (model(changed) - model(given)).abs().amax(dim=(0, 2))
    assert difference[:6].max() == 0
    assert difference[6] > 1e-4


def test_padding_and_neighbors_in_the_batch_do_not_matter(model: HNet) -> None:
    given, lengths = ids(), torch.tensor([5, N, 1])
    found = model(given, lengths)
    for row, length in enumerate(lengths.tolist()):
        close(found[row, :length], model(given[row : row + 1, :length])[0])


def test_a_packed_text_is_what_it_is_alone_forward_and_backward(model: HNet) -> None:
    given, cuts = ids(1), [3, 1, 8, 2]
    starts = torch.zeros(1, N, dtype=torch.bool)
    starts[0, [0, 3, 4, 12]] = True
    weight = torch.linspace(-1, 1, N * V).double().view(1, N, V)
    gradients = []
    for packed in (True, False):
        model.zero_grad()
        found = (
            model(given, starts=starts)
            if packed
            else torch.cat([model(part) for part in given.split(cuts, dim=1)], dim=1)
        )
        (found * weight).sum().backward()
        gradients.append([found.detach(), *[p.grad for p in model.parameters()]])
    for ours, alone in zip(*gradients, strict=True):
        close(ours, alone)


def test_prefill_and_steps_equal_the_whole_pass_of_ragged_rows(model: HNet) -> None:
    given, lengths = ids(), torch.tensor([5, 7, 1])
    whole = model(given)
    cache = model.start_cache(3, N)
    found = model.prefill(given[:, :7], lengths, cache)
    rows = torch.arange(3)
    for index in range(7):
        close(found, whole[rows, lengths + index - 1])
        found = model.step(given[rows, lengths + index], cache)


def test_steps_alone_equal_the_whole_pass(model: HNet) -> None:
    given = ids()
    cache = model.start_cache(3, N)
    found = torch.stack([model.step(given[:, index], cache) for index in range(N)], dim=1)
    close(found, model(given))


def test_text_is_the_same_with_and_without_cache_and_alone(model: HNet) -> None:
    settings = {"max_new_bytes": 6, "top_k": 5, "temperature": 1.2}
    given, lengths = ids(), torch.tensor([4, 9, 2])
    made = []
    for use_cache in (True, False):
        rng = SampleRng.of(range(3), "text")
        stream = model.continue_ids(given, lengths, TextSettings(**settings, use_cache=use_cache), rng=rng)
        made.append(torch.stack(list(stream), dim=1))
    assert torch.equal(*made)
    rng = SampleRng.of([1], "text")
    alone = torch.stack(list(model.continue_ids(given[1:2, :9], None, TextSettings(**settings), rng=rng)), dim=1)
    assert torch.equal(alone, made[0][1:2])


def test_text_ends_before_a_stop_string() -> None:
    model = build(ONE, vocab_size=256)
    with torch.no_grad():
        # Greedy bytes are ASCII.
        model.head.weight[128:] = 0
    made = model.generate_text(["ab", "c"], TextSettings(greedy=True, max_new_bytes=12))
    stop = made[0][4:6].decode()
    cut = model.generate_text(["ab", "c"], TextSettings(greedy=True, max_new_bytes=12, stop=(stop,)))
    assert [len(text) for text in made] == [12, 12]
    assert cut == [text.split(stop.encode())[0] for text in made]
    assert len(cut[0]) <= 4


def test_levels_by_class_with_and_without_cache() -> None:
    specs = specs_to_json([LevelSpec(2, vocab_size=V), LevelSpec(6, (2, 3), vocab_size=V)])
    model = build(ONE, level_specs=specs, num_classes=3)
    labels = torch.tensor([2, 0])
    made = [
        model.generate(
            labels,
            model.make_settings(guidance_scale=2.0, use_cache=use_cache),
            rng=torch.Generator().manual_seed(5),
        ).concat()
        for use_cache in (True, False)
    ]
    assert torch.equal(*made)
    logits = model(made[0][:, :-1], None, labels)
    assert logits.shape == (2, 8, V)
    # The class is not counted among the ids that a cache holds.
    whole = model.prefill(made[0], None, model.start_cache(2, 8), labels)
    close(whole, model(made[0], None, labels)[:, -1])
    # The class is at position 0: every position depends on it.
    assert (model(made[0][:, :-1], None, labels - labels) - logits)[0].abs().amax(dim=1).min() > 1e-6


def test_the_loss_is_cross_entropy_plus_the_weighted_ratios() -> None:
    model, texts = build(TWO), Texts(ids(), torch.tensor([N, 9, 4]))
    found = model.loss(texts)
    assert {"loss", "bits_per_token", "accuracy", "ratio", "compression_0", "compression_1"} == set(found)
    entropy = found["bits_per_token"] * math.log(2)
    close(found["loss"], entropy + found["ratio"])
    # The last symbol of a row of full length predicts nothing and is not read.
    outer, inner = model.find_boundaries(texts.ids[:, :-1], torch.tensor([N - 1, 9, 4]))
    close(found["compression_0"], torch.tensor((N - 1 + 9 + 4) / outer.sum().item()))
    close(found["compression_1"], torch.tensor(outer.sum().item() / inner.sum().item()))
    twice = build(TWO, ratio_weight=0.06).loss(texts)
    close(twice["ratio"], 2 * found["ratio"])


def test_every_parameter_learns() -> None:
    model = build(TWO)
    model.loss(Texts(ids()))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_training_with_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = build(ONE).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.loss(Texts(ids(), torch.tensor([N, 4, 9])))["loss"].backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for ours, expected in zip(*gradients, strict=True):
        close(ours, expected)


def test_bfloat16_keeps_the_residual_in_float32() -> None:
    model = build(ONE).float().to(torch.bfloat16)
    assert model.stages[0].residual.weight.dtype == torch.float32
    assert model(ids()).dtype == torch.bfloat16
    cache = model.start_cache(3, N + 1)
    assert model.prefill(ids(), None, cache).isfinite().all()
    assert model.step(ids()[:, 0], cache).dtype == torch.bfloat16


COUNTS = {
    "hnet-1stage-l": (679_405_312, 622_923_776),
    "hnet-1stage-xl": (1_270_833_920, 1_214_352_384),
    "hnet-2stage-l": (874_315_264, 736_182_272),
    "hnet-2stage-xl": (1_603_492_224, 1_366_145_536),
    "hnet-2stage-xl-chinese": (1_755_285_888, 1_517_939_200),
    "hnet-2stage-xl-code": (1_654_090_112, 1_416_743_424),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (model, model.stages[-1])]
    assert tuple(counts) == COUNTS[name]
    assert sum(parameter.numel() for parameter in model.stages[0].encoder.parameters()) == 26_405_248


def test_the_tiny_ones_are_of_the_sizes_that_were_compared() -> None:
    counts = {}
    for name in ("hnet-tiny", "flat-transformer-tiny", "flat-mamba-tiny"):
        with torch.device("meta"):
            counts[name] = sum(parameter.numel() for parameter in create(name).parameters())
    assert counts == {"hnet-tiny": 2_102_792, "flat-transformer-tiny": 713_952, "flat-mamba-tiny": 494_462}
    assert {get_preset(name).model for name in list_presets("flat-*")} == {"HNet"}
    assert model_class("HNet") is HNet


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("hnet-1stage-l", (2.63, 0.88)),
        ("hnet-1stage-xl", (3.03, 0.88)),
        ("hnet-2stage-l", (2.63, 1.52, 0.71)),
        ("hnet-2stage-xl", (3.03, 1.43, 0.71)),
    ],
)
def test_learning_rates_of_the_stages_are_the_published_ones(name: str, rates: tuple[float, ...]) -> None:
    with torch.device("meta"):
        model = create(name)
    found = model.rate_multipliers()
    assert tuple(round(found[f"stages.{stage}"], 2) for stage in range(len(rates))) == rates
    # Every parameter belongs to exactly one of them.
    for parameter, _ in model.named_parameters():
        assert sum(parameter.startswith(f"{prefix}.") for prefix in found) == 1
    assert found["embedding"] == found["head"] == found["stages.0"]


def test_a_model_without_chunks_has_no_rates_ratios_or_router() -> None:
    model = build(FLAT)
    assert model.rate_multipliers() == {}
    assert set(model.loss(Texts(ids()))) == {"loss", "bits_per_token", "accuracy"}
    assert not any("router" in name for name, _ in model.named_parameters())


def test_the_start_is_the_published_one() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"layout": ["m1", ["T1"], "m1"], "dims": [128, 256], "num_heads": [4, 4]}
    model = HNet(**sizes)
    outer, inner = model.stages
    spread = {
        "outer in": (outer.encoder.layers[0].mixer.in_proj.weight, 0.02),
        "outer out": (outer.decoder.layers[0].mixer.out_proj.weight, 0.02 / 2**0.5),
        "inner in": (inner.encoder.layers[0].mixer.qkv.weight, 0.02),
        "inner out": (inner.encoder.layers[0].mixer.out.weight, 0.02 / 4**0.5),
        "inner down": (inner.encoder.layers[0].mlp.down.weight, 0.02 / 4**0.5),
        "inner gate": (inner.encoder.layers[0].mlp.gate.weight, 0.02),
        "head": (model.head.weight, 0.02),
        "embedding": (model.embedding.weight, 1.0),
    }
    for name, (weight, expected) in spread.items():
        assert math.isclose(weight.std().item(), expected, rel_tol=0.03), name
    assert torch.equal(outer.router.query.weight, torch.eye(128))
    assert torch.equal(outer.router.key.weight, torch.eye(128))
    assert not outer.residual.weight.any()
    assert not outer.residual.bias.any()
    assert not inner.padding.any()
    official = HNet(**sizes, residual_bias="uniform").stages[0].residual.bias
    assert 0.9 * 128**-0.5 < official.abs().max() < 128**-0.5
    # About half of all symbols begin a chunk at the start.
    text = torch.randint(256, (2, 256))
    assert 0.4 < model.find_boundaries(text)[0].float().mean() < 0.6


BAD: list[tuple[dict[str, Any], str]] = [
    ({"layout": "m4"}, r"layout holds 'm4', expected \[encoder, inner, decoder\] or \[main\]"),
    ({"layout": ["m1", ["T1"]]}, r"layout holds \['m1', \['T1'\]\], expected"),
    (
        {"layout": ["x2"], "dims": [8], "num_heads": [2], "windows": None},
        "layout holds 'x2', expected letters of m, t, M and T",
    ),
    ({"dims": [8]}, r"dims is \[8\], expected 2 entries, one per stage"),
    ({"dims": [12, 8]}, "dims holds 8 inside of 12, expected widths that do not fall inwards"),
    ({"num_heads": [3, 2]}, "num_heads is 3, expected a divisor of the stage's width, 8"),
    ({"rotary_dims": [2, 8]}, "rotary_dims holds 8, expected an even number up to the channels of a head, 6"),
    ({"windows": [-1, None]}, "windows holds -1, expected None or a number of earlier tokens"),
    ({"targets": [1.0]}, r"targets is \[1.0\], expected 1 numbers above 1, one per stage of chunks"),
    ({"ratio_over": "all"}, "ratio_over is 'all', expected one of"),
    ({"query_from": "next"}, "query_from is 'next', expected one of"),
    ({"smoother": "float16"}, "smoother is 'float16', expected one of"),
    ({"residual_bias": "one"}, "residual_bias is 'one', expected one of"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({**ONE, **settings})


def test_input_that_does_not_fit_is_refused() -> None:
    model = build(ONE)
    with pytest.raises(ValueError, match=f"lengths span 0 to {N}, expected 1 to {N}"):
        model(ids(), torch.tensor([0, 3, N]))
    classes = build(ONE, level_specs=specs_to_json([LevelSpec(N, vocab_size=V)]), num_classes=2)
    with pytest.raises(ValueError, match="starts was given, but sequences with a class in front are not packed"):
        classes(ids(), None, torch.tensor([0, 1, 1]), starts=torch.ones(3, N, dtype=torch.bool))
