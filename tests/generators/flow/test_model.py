from __future__ import annotations

import itertools
import math
from pathlib import Path

import jaxtyping
import pytest
import torch

from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.known import Known
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

ONE_LEVEL = (LevelSpec(16, (4, 4), 6),)
PYRAMID = (LevelSpec(1, (1, 1), 6), LevelSpec(4, (2, 2), 6), LevelSpec(16, (4, 4), 6))


def make(specs: tuple[LevelSpec, ...] = ONE_LEVEL, *, seed: int = 0, **config: object) -> FlowTransformer:
    """Return a tiny model whose zero-initialized layers are random, so that everything has an effect."""
    torch.manual_seed(seed)
    sizes = {"num_classes": 5, "dim": 32, "depth": 2, "num_heads": 2, **config}
    model = FlowTransformer(level_specs=specs_to_json(specs), **sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("sizes", "count"), [({"dim": 768, "depth": 12, "num_heads": 12}, 130_359_584), ({}, 674_961_824)]
)
def test_published_sizes(sizes: dict[str, int], count: int) -> None:
    specs = specs_to_json((LevelSpec(256, (16, 16), 32),))
    with torch.device("meta"):
        model = FlowTransformer(level_specs=specs, **sizes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_fresh_model_predicts_zero_and_learns() -> None:
    model = FlowTransformer(level_specs=specs_to_json(ONE_LEVEL), num_classes=5, dim=32, depth=1, num_heads=2)
    x, time, label = torch.randn(3, 16, 6), torch.rand(3), torch.tensor([0, 1, 5])
    assert torch.equal(model.velocity(x, time, label), torch.zeros(3, 16, 6))
    model.register_to_config(label_dropout=0.0)
    labels = torch.arange(4).repeat(4)
    offset = labels[:, None, None] - 1.5
    pyramid = TokenPyramid((offset + torch.linspace(-1, 1, 6).expand(16, 16, 6),), ONE_LEVEL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = seeded()
    losses = []
    for _ in range(120):
        terms = model.train().loss(pyramid, labels, rng=rng)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(float(terms["loss"].detach()))
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])
    made = model.generate(labels, FlowSettings(num_steps=20, timestep_shift=1.0, solver="heun"), rng=rng)
    # One image a class was overfitted, so it comes back.
    assert (made.levels[0] - pyramid.levels[0]).abs().mean() < 0.25


def test_map_interface_is_the_token_interface() -> None:
    model = make()
    sample, time, label = torch.randn(2, 6, 4, 4), torch.rand(2), torch.tensor([1, 4])
    tokens = torch.stack([sample[:, :, i // 4, i % 4] for i in range(16)], dim=1)
    out = model.velocity(tokens, time, label)
    torch.testing.assert_close(model(sample, time, label)[:, :, 2, 1], out[:, 9], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"sample has shape \(2, 6, 2, 8\)"):
        model(sample.reshape(2, 6, 2, 8), time, label)


def test_every_input_and_option_matters() -> None:
    x, time, label = torch.randn(1, 21, 6), torch.tensor([0.3]), torch.tensor([1])
    base = make(PYRAMID)
    out = base.velocity(x, time, label)
    assert not torch.allclose(out, base.velocity(x, time + 0.1, label), atol=1e-4)
    assert not torch.allclose(out, base.velocity(x, time, label + 1), atol=1e-4)
    assert not torch.allclose(out, base.velocity(x.flip(1), time, label).flip(1), atol=1e-3)
    for option in (
        {"use_rotary": False},
        {"norm": "layer"},
        {"ffn": "gelu"},
        {"use_shift": False},
        {"use_qk_norm": True},
        {"has_double_output": True},
    ):
        other = make(PYRAMID, **option).velocity(x, time, label)
        assert other.shape == out.shape
        assert not torch.allclose(out, other, atol=1e-3), option


def test_batch_does_not_matter() -> None:
    model = make(patch_size=2).double()
    x, time, label = torch.randn(4, 16, 6, dtype=torch.float64), torch.rand(4).double(), torch.tensor([0, 5, 2, 2])
    together = model.velocity(x, time, label)
    for row in range(4):
        alone = model.velocity(x[row : row + 1], time[row : row + 1], label[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)


def test_patches_are_squares_of_the_map() -> None:
    # With the network between them removed, folding and unfolding must be inverse, channel order apart.
    model = make(patch_size=2)
    sample = torch.randn(2, 16, 6)
    folded = model._patches.fold(sample)
    for token, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        square = sample.reshape(2, 4, 4, 6)[:, row : row + 2, column : column + 2]
        assert torch.equal(folded[:, token], square.permute(0, 3, 1, 2).flatten(1))
        out = torch.zeros(2, 4, 24)
        out[:, token] = square.flatten(1)
        assert torch.equal(
            model._patches.unfold(out).reshape(2, 4, 4, 6)[:, row : row + 2, column : column + 2], square
        )


def test_loss_by_hand_and_order_of_draws() -> None:
    model = make(PYRAMID, latent_mean=[0.5] * 6, latent_std=[2.0] * 6, latent_multiplier=0.25, cosine_weight=0.5)
    pyramid = TokenPyramid.split(torch.randn(3, 21, 6), PYRAMID)
    labels = torch.tensor([0, 1, 4])
    terms = model.loss(pyramid, labels, rng=seeded(7))

    rng = seeded(7)
    time = torch.sigmoid(torch.randn(3, generator=rng))
    noise = torch.randn(3, 6, 21, generator=rng).permute(0, 2, 1)
    data = (pyramid.concat() - 0.5) / 2 * 0.25
    t = time.view(3, 1, 1)
    velocity = model.velocity(t * data + (1 - t) * noise, time, labels)
    mse = ((velocity - (data - noise)) ** 2).mean()
    cosine = (1 - torch.cosine_similarity(velocity, data - noise, dim=2)).mean()
    torch.testing.assert_close(terms["mse"], mse)
    torch.testing.assert_close(terms["cosine"], cosine)
    torch.testing.assert_close(terms["loss"], mse + 0.5 * cosine)

    # Shifted, the same draws stand for times nearer to the noise: odds of 0.25 to 1 of what they were.
    model.register_to_config(time_shift=0.25)
    t = torch.sigmoid(torch.logit(time) + math.log(0.25)).view(3, 1, 1)
    shifted = ((model.velocity(t * data + (1 - t) * noise, t.flatten(), labels) - (data - noise)) ** 2).mean()
    torch.testing.assert_close(model.loss(pyramid, labels, rng=seeded(7))["mse"], shifted)
    assert abs(float(shifted.detach() / mse.detach()) - 1) > 0.01
    model.register_to_config(time_shift=1.0)
    t = time.view(3, 1, 1)

    # Train mode adds one draw, after the others: a third of the labels is dropped here.
    model.register_to_config(label_dropout=0.6)
    drop = torch.rand(3, generator=rng) < 0.6
    assert 0 < drop.sum() < 3
    dropped = torch.where(drop, 5, labels)
    expected = ((model.velocity(t * data + (1 - t) * noise, time, dropped) - (data - noise)) ** 2).mean()
    torch.testing.assert_close(model.train().loss(pyramid, labels, rng=seeded(7))["mse"], expected)


def test_generation_is_the_ode_with_guidance() -> None:
    model = make(latent_mean=[1.0] * 6, latent_std=[3.0] * 6)
    labels = torch.tensor([3, 0])
    settings = FlowSettings(
        num_steps=5, timestep_shift=0.5, guidance_scale=3.0, cfg_channels=2, guidance_start=0.2, guidance_end=0.8
    )
    seen: list[tuple[int, bool]] = []
    made = model.generate(
        labels, settings, rng=seeded(2), callback=lambda step, pyramid, **_: seen.append((step, pyramid is not None))
    )
    assert seen == [(0, False), (1, False), (2, False), (3, False), (4, True)]
    x = torch.randn(2, 6, 4, 4, generator=seeded(2)).flatten(2).transpose(1, 2)
    grid = [0.5 * i / 5 / (1 - 0.5 * i / 5) for i in range(6)]
    for t, following in itertools.pairwise(grid):
        v = model.velocity(x, torch.full((2,), t), labels)
        if 0.2 <= t <= 0.8:
            null = model.velocity(x, torch.full((2,), t), torch.tensor([5, 5]))
            v[..., :2] = null[..., :2] + 3 * (v - null)[..., :2]
        x = x + (following - t) * v
    torch.testing.assert_close(made.levels[0], x * 3 + 1, rtol=1e-4, atol=1e-4)
    again = model.generate(labels, settings, rng=seeded(2))
    assert torch.equal(made.levels[0], again.levels[0])
    assert not torch.equal(made.levels[0], model.generate(labels, settings, rng=seeded(3)).levels[0])


def test_generation_by_diffusion_and_its_draws() -> None:
    model, labels = make(), torch.tensor([3, 0])
    settings = FlowSettings(num_steps=3, solver="sde", timestep_shift=1.0)
    made = model.generate(labels, settings, rng=seeded(2)).levels[0]
    rng = seeded(2)
    noise = [torch.randn(2, 6, 16, generator=rng).transpose(1, 2) for _ in range(3)]
    x = noise[0]
    for t, following, fresh in ((0.0, 0.48, noise[1]), (0.48, 0.96, noise[2]), (0.96, 1.0, torch.zeros(()))):
        v = model.velocity(x, torch.full((2,), t), labels)
        x = x + (following - t) * ((1 + t) * v - x) + (2 * (1 - t) * (following - t)) ** 0.5 * fresh
    torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4)
    assert torch.equal(made, model.generate(labels, settings, rng=seeded(2)).levels[0])


def test_levels_lie_on_one_frame() -> None:
    model = make(PYRAMID)
    fine = make(ONE_LEVEL)
    assert torch.equal(model.position_table()[5:], fine.position_table())
    assert torch.equal(model.rotary()[:, 5:], fine.rotary())
    made = model.generate(torch.tensor([0]), FlowSettings(num_steps=1))
    assert made.specs == PYRAMID


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    model = make(latent_mean=[0.1] * 6, latent_std=[1 / 3] * 6)
    model.save_pretrained(tmp_path)
    loaded = FlowTransformer.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    labels = torch.tensor([1, 2])
    settings = FlowSettings(num_steps=2, guidance_scale=2.0)
    first, second = (m.generate(labels, settings, rng=seeded()).levels[0] for m in (model, loaded))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)

    half = FlowTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.position_table().dtype == half.rotary().dtype == torch.float32
    rough = half.generate(labels, settings, rng=seeded()).levels[0]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, first, rtol=0.1, atol=0.1)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = make().train()
    pyramid = TokenPyramid((torch.randn(2, 16, 6),), ONE_LEVEL)
    gradients = []
    for enable in (False, True):
        if enable:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model.loss(pyramid, torch.tensor([0, 1]), rng=seeded())["loss"].backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(math.isfinite(float(g.sum())) and g.abs().sum() > 0 for g in gradients[0])


def test_refusals() -> None:
    for specs, message in (
        (
            (LevelSpec(16, (4, 4), 6, 10),),
            "level 0 is .* expected continuous tokens .*; discrete tokens are for the recipe har-tiny$",
        ),
        ((LevelSpec(16, None, 6),), "level 0 is .* expected continuous tokens"),
        ((LevelSpec(1, (1, 1), 4), LevelSpec(16, (4, 4), 6)), "of the same dim as every other level"),
        ((), "level_specs is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            make(specs)
    for config, message in (
        ({"patch_size": 3}, "patch_size is 3"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_heads": 5}, "num_heads is 5"),
        ({"dim": 30}, "dim is 30"),
        ({"time_shift": 0.0}, "time_shift is 0.0, expected above 0"),
        ({"latent_mean": [0.0] * 5, "latent_std": [1.0] * 5}, "have 5 channels, the level specs 6"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**config)
    model = make()
    with pytest.raises(ValueError, match="this generator was trained for"):
        model.loss(TokenPyramid.split(torch.randn(1, 21, 6), PYRAMID), torch.tensor([0]))
    with pytest.raises(ValueError, match="span 5 to 5, expected 0 to 4"):
        model.generate(torch.tensor([5]))


@pytest.mark.parametrize("name", ["norm", "ffn", "time_distribution"])
def test_unknown_choices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The type checker of test runs would refuse a wrong literal before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=f"{name} is 'other', expected one of"):
        make(**{name: "other"})


def test_compiled_sampling_is_the_same_with_one_graph_a_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # The run-time check of annotations is no part of a graph.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch._dynamo.reset()
    model, labels = make(PYRAMID), torch.tensor([1, 4])
    settings = FlowSettings(num_steps=6, guidance_scale=2.0, guidance_start=0.3)
    expected = model.generate(labels, settings, rng=seeded()).concat()
    model.compile_sampling(backend="eager")
    counters = torch._dynamo.utils.counters["stats"]
    counters.clear()
    torch.testing.assert_close(model.generate(labels, settings, rng=seeded()).concat(), expected)
    # Guided steps have twice the batch of the others.
    assert counters["unique_graphs"] == 2
    model.generate(labels, settings, rng=seeded(1))
    assert counters["unique_graphs"] == 2


@pytest.mark.parametrize("specs", [ONE_LEVEL, PYRAMID], ids=["one level", "pyramid"])
def test_a_path_may_start_from_tokens_with_noise(specs) -> None:
    model = make(specs, latent_mean=[0.5] * 6, latent_std=[2.0] * 6)
    tokens = tuple(torch.randn(2, spec.num_tokens, 6, generator=seeded(3)) for spec in specs)
    nothing = tuple(torch.zeros(2, spec.num_tokens, dtype=torch.bool) for spec in specs)
    known, labels = Known(TokenPyramid(tokens, specs), nothing), torch.tensor([1, 4])
    settings = FlowSettings(num_steps=4, timestep_shift=1.0, strength=0.5)
    seen = []
    made = model.generate(
        labels,
        settings,
        known=known,
        rng=seeded(),
        callback=lambda step, pyramid, *, latents, time: seen.append((step, pyramid is None, time)),
    )
    assert seen == [(0, True, 0.75), (1, False, 1.0)]
    assert model.count_steps(settings) == 2
    # Two Euler steps by hand, from the tokens and the noise that a whole path would start with.
    noise = torch.randn(2, 6, sum(spec.num_tokens for spec in specs), generator=seeded()).transpose(1, 2)
    state = 0.5 * (known.pyramid.concat() - 0.5) / 2 + 0.5 * noise
    for time in (0.5, 0.75):
        with torch.no_grad():
            state = state + 0.25 * model.velocity(state, torch.full((2,), time), labels)
    torch.testing.assert_close(made.concat(), state * 2 + 0.5, atol=1e-5, rtol=1e-5)
    # What is given stays beside it, as noisy as on a whole path.
    given = Known(known.pyramid, (*nothing[:-1], torch.arange(specs[-1].num_tokens).expand(2, -1) < 3))
    kept = model.generate(labels, settings, known=given, rng=seeded())
    assert torch.equal(kept.levels[-1][:, :3], tokens[-1][:, :3])
    assert not torch.equal(kept.levels[-1][:, 3:], made.levels[-1][:, 3:])
    still = model.generate(labels, FlowSettings(num_steps=4, strength=0.0), known=known, rng=seeded())
    torch.testing.assert_close(still.concat(), known.pyramid.concat())
    with pytest.raises(ValueError, match=r"strength is 0\.5 and known is None, expected tokens \(2, "):
        model.generate(labels, settings)
    if len(specs) > 1:
        with pytest.raises(ValueError, match=r"known is of tokens \(2, 1, 6\), expected tokens \(2, 21, 6\)"):
            model.generate(labels, settings, known=Known(known.pyramid.prefix(1)))
