"""The pyramid VAE: what the paper's pyramid adds to the released model, and what every tokenizer owes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen import registry
from hiergen.geometry.field_grid import ExtractionSettings, evaluate_grid
from hiergen.nn.blocks.perceiver import fourier_embedding
from hiergen.nn.farthest_points import farthest_points
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.tokenizers.pyramid_vae.field import EMPTY
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE

TINY: dict[str, Any] = {
    "num_tokens": [3, 5],
    "token_dim": 4,
    "width": 16,
    "num_heads": 2,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_frequencies": 3,
    "point_counts": [24, 12, 6],
}
#: Tokens with places.
PLACED: dict[str, Any] = {"num_tokens": [1, 8], "anchor_reach": [0.5, 0.0]}
GRID = ExtractionSettings(depth=3, coarse_depth=3, chunk_size=50)


def tiny(**changes: Any) -> PyramidVAE:
    torch.manual_seed(1)
    model = PyramidVAE(**{**TINY, **changes}).double().eval()
    # Weights as large as after training, so that a wrong path cannot hide behind a small one.
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def clouds(batch: int = 2, points: int = 30, channels: int = 6) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return torch.rand(batch, points, channels, generator=rng, dtype=torch.float64) * 2 - 1


def subset(cloud: Tensor, count: int) -> Tensor:
    order = farthest_points(cloud[..., :3], count)
    return cloud.gather(1, order[..., None].expand(-1, -1, cloud.shape[-1]))


@pytest.mark.parametrize("residual_per_level", [False, True])
@pytest.mark.parametrize("share_input_projection", [False, True])
def test_the_pyramid_sums_independent_cross_attentions(residual_per_level: bool, share_input_projection: bool) -> None:
    model = tiny(residual_per_level=residual_per_level, share_input_projection=share_input_projection, encoder_depth=0)
    data = clouds()
    parts = []
    for resolution, count in enumerate(TINY["point_counts"]):
        block = model.cross_blocks[resolution]
        projection = model.input_projections[0 if share_input_projection else resolution]
        cloud = subset(data, count)
        embedded = projection(torch.cat((fourier_embedding(cloud[..., :3], 3), cloud[..., 3:]), dim=-1))
        queries = model.query_banks[1].expand(2, -1, -1)
        parts.append(block(queries, block.project_data(embedded)))
    total = sum(parts) - (0 if residual_per_level else 2 * model.query_banks[1])
    expected = model.to_moments(model.encoder_norm(total)).chunk(2, dim=-1)
    posterior = model.posterior(data)
    torch.testing.assert_close((posterior.mean, posterior.log_variance), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("queries", ["learned", "farthest"])
def test_one_resolution_equals_the_single_level_exactly(queries: str) -> None:
    data = clouds(points=24)
    released = tiny(point_counts=None, queries=queries)
    for residual in (False, True):
        pyramid = tiny(point_counts=[24], queries=queries, residual_per_level=residual)
        pyramid.load_state_dict(released.state_dict())
        for ours, theirs in zip(pyramid.encode(data).levels, released.encode(data).levels, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("queries", ["learned", "farthest"])
def test_clouds_in_farthest_point_order_need_no_search(queries: str) -> None:
    model = tiny(queries=queries)
    data = clouds()
    ordered = subset(data, 30)
    expected = model.encode(data).levels
    for levels in (model.encode(ordered).levels, model.encode(ordered, is_ordered=True).levels):
        torch.testing.assert_close(levels, expected, rtol=1e-12, atol=1e-12)


def test_levels_are_alternatives_and_the_finest_present_is_decoded() -> None:
    model = tiny()
    assert model.specs == (LevelSpec(3, None, dim=4), LevelSpec(5, None, dim=4))
    pyramid, points = model.encode(clouds()), torch.rand(2, 7, 3, dtype=torch.float64)
    fine = model.encode(clouds(), levels=[1])
    assert fine.specs == model.specs[1:]
    logits = model.decode(pyramid).query(points)
    assert torch.equal(logits, model.decode(fine).query(points))
    coarse = model.decode(pyramid.prefix(1)).query(points)
    assert not torch.allclose(coarse, logits)
    changed = TokenPyramid((pyramid.levels[0] + 1, pyramid.levels[1]), pyramid.specs)
    assert torch.equal(model.decode(changed).query(points), logits)


def test_beyond_its_extent_a_field_is_that_of_empty_space() -> None:
    open_ended, model = tiny(include_pi=True), tiny(include_pi=True, extent=1.0)
    assert model.state_dict().keys() == open_ended.state_dict().keys()
    pyramid = model.encode(clouds())
    points = torch.rand(2, 400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2
    beyond = (points.abs() > 1).any(dim=-1)
    logits, all_of_it = model.decode(pyramid).query(points), open_ended.decode(pyramid).query(points)
    assert torch.equal(logits[~beyond], all_of_it[~beyond])
    assert logits[beyond].max() <= EMPTY < all_of_it[beyond].max()
    # A part of the batch has the same extent, and the border belongs to the inside.
    assert torch.equal(model.decode(pyramid)[1:].query(points[1:]), logits[1:])
    edge = torch.tensor([[[1.0, -1.0, 1.0]]] * 2, dtype=torch.float64)
    assert torch.equal(model.decode(pyramid).query(edge), open_ended.decode(pyramid).query(edge))


def test_places_cost_no_weights_and_tell_the_tokens_of_a_level_apart() -> None:
    model = tiny(**PLACED)
    assert model.state_dict().keys() == tiny().state_dict().keys()
    data, points = clouds(), torch.rand(2, 7, 3, dtype=torch.float64)
    pyramid = model.encode(data)
    logits = model.decode(pyramid).query(points)
    assert torch.equal(logits, model.decode(model.encode(data, levels=[1])).query(points))
    assert not torch.allclose(logits, model.decode(pyramid.prefix(1)).query(points))
    moved = TokenPyramid((pyramid.levels[0], pyramid.levels[1].flip(1)), pyramid.specs)
    assert not torch.allclose(model.decode(moved).query(points), logits)
    # Tokens know their places, also where no head fades; without places they are a set.
    for reach, is_set in (([0.0, 0.0], False), (None, True)):
        other = tiny(num_tokens=PLACED["num_tokens"], anchor_reach=reach)
        fields = [other.decode(one).query(points) for one in (pyramid, moved)]
        assert torch.allclose(*fields) == is_set


def test_heads_with_a_short_reach_read_what_is_near() -> None:
    model = tiny(**{**PLACED, "anchor_reach": [0.02, 0.02], "encoder_depth": 0, "decoder_depth": 0})
    data, corner = clouds(), torch.full((2, 1, 3), -0.9, dtype=torch.float64)
    pyramid = model.encode(data)
    # The cell of the first anchor of 2 x 2 x 2 is that of the corner; far points do not reach its token.
    far = data.clone()
    far[:, 12:, 3:] += (data[:, 12:, :3].amax(dim=-1, keepdim=True) > 0.5) * 1.0
    changed = model.encode(far)
    assert torch.allclose(changed.levels[1][:, 0], pyramid.levels[1][:, 0])
    assert not torch.allclose(changed.levels[1], pyramid.levels[1])
    tokens = pyramid.levels[1].clone()
    tokens[:, 1:] += 1
    other = TokenPyramid((pyramid.levels[0], tokens), pyramid.specs)
    fields = [model.decode(one) for one in (pyramid, other)]
    torch.testing.assert_close(fields[0].query(corner), fields[1].query(corner))
    assert not torch.allclose(fields[0].query(-corner), fields[1].query(-corner))


def test_chunks_shapes_and_batches_do_not_change_the_field() -> None:
    model = tiny(queries="farthest")
    data, points = clouds(3), torch.rand(3, 11, 3, dtype=torch.float64)
    field = model.decode(model.encode(data))
    logits = field.query(points)
    for chunk_size in (1, 4, 11, 100):
        torch.testing.assert_close(field.query(points, chunk_size=chunk_size), logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(field.shape(1)(points[1]), logits[1], rtol=1e-12, atol=1e-12)
    alone = model.decode(model.encode(data[2:]))
    torch.testing.assert_close(alone.query(points[2:]), logits[2:], rtol=1e-12, atol=1e-12)
    assert (field.batch_size, field[1:].batch_size, alone.device.type) == (3, 2, "cpu")


def test_tokens_are_read_once_however_many_points_are_asked_for() -> None:
    model = tiny()
    pyramid = model.encode(clouds())
    calls = []
    for module in (model.decoder.stack, model.decoder.cross_block.attention.key_value):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    field = model.decode(pyramid)
    for index in range(2):
        shape = field.shape(index)
        assert evaluate_grid(lambda points, shape=shape: shape(points.double()), GRID).num_queries > GRID.chunk_size
    assert len(calls) == 2


def test_tokens_are_the_mean_or_drawn_with_the_given_generator() -> None:
    model = tiny()
    data = clouds()
    posterior = model.posterior(data, 0)
    mean, log_variance = posterior.mean, posterior.log_variance
    assert torch.equal(model.encode(data).levels[0], mean)
    first, again = (model.encode(data, rng=torch.Generator().manual_seed(2)).levels[0] for _ in range(2))
    assert torch.equal(first, again)
    scores = ((first - mean) / (0.5 * log_variance).exp()).flatten()
    expected = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2)).flatten().double()
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)


def test_forward_gives_logits_of_each_level_and_a_mean_kl() -> None:
    model = tiny(kl_weight=0.5)
    data, points = clouds(), torch.rand(2, 7, 3, dtype=torch.float64)
    output = model(data, points=points)
    pyramid = model.encode(data)
    assert torch.equal(output.reconstruction, output.features["logits_1"])
    for level in (0, 1):
        expected = model.decode(pyramid.prefix(level + 1)).query(points)
        torch.testing.assert_close(output.features[f"logits_{level}"], expected, rtol=1e-12, atol=1e-12)
    normal = torch.distributions.Normal(0.0, 1.0)
    divergences = []
    for level in (0, 1):
        found = model.posterior(data, level)
        posterior = torch.distributions.Normal(found.mean, (0.5 * found.log_variance).exp())
        divergences.append(torch.distributions.kl_divergence(posterior, normal).mean())
    torch.testing.assert_close(output.losses["kl"], 0.5 * sum(divergences) / 2)
    assert model(data, levels=[0]).features.keys() == {"logits_0"}
    torch.testing.assert_close(model(data).reconstruction, model.decode(pyramid).query(data[..., :3]))

    model.train()
    drawn = [model(data, rng=torch.Generator().manual_seed(s), points=points).reconstruction for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_start_follows_its_settings() -> None:
    model = PyramidVAE(**{**TINY, "width": 64, "init_scale": 1.0, "init_log_variance": -6.0})
    for layer in (model.encoder_stack.blocks[0].mlp.up, model.decoder.cross_block.attention.key_value):
        assert layer.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert (model.posterior(clouds().float()).log_variance + 6).abs().max() < 3
    untouched = PyramidVAE(**TINY)
    assert 0 < untouched.to_moments.bias.abs().max() <= TINY["width"] ** -0.5


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointed in (False, True):
        model = tiny().train()
        if checkpointed:
            model.enable_gradient_checkpointing()
        output = model(clouds(), rng=torch.Generator().manual_seed(0))
        (output.reconstruction.square().mean() + output.losses["kl"]).backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if n != "query_banks.0")
        gradients.append(model.encoder_stack.blocks[0].mlp.up.weight.grad)
    assert torch.equal(*gradients)


def test_saved_and_loaded_is_equal_bit_for_bit(tmp_path: Any) -> None:
    model = tiny(queries="farthest", include_pi=True, final_encoder_norm=False, qkv_bias=False).float()
    model.save_pretrained(tmp_path)
    loaded = PyramidVAE.from_pretrained(tmp_path)
    assert loaded.specs == model.specs
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    data = clouds().float()
    # Loaded weights lie at other addresses, which can move the last bits of a product.
    torch.testing.assert_close(loaded.encode(data).levels[1], model.encode(data).levels[1], rtol=1e-4, atol=1e-5)
    half = PyramidVAE.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    tokens = half.encode(data)
    assert (half.dtype, tokens.levels[1].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(tokens.levels[1], model.encode(data).levels[1], rtol=0.2, atol=0.3)
    assert half.decode(tokens).query(data[..., :3]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "specs", "parameters"),
    [
        ("pyramid-vae-shapes", [256, 1024], 199.7e6),
        ("pyramid-vae-mar3d", [256], 184.72e6),
        ("pyramid-vae-mar3d-large", [256], 354.83e6),
        ("pyramid-vae-craftsman", [768], 184.46e6),
    ],
)
def test_presets_have_the_published_sizes(name: str, specs: list[int], parameters: float) -> None:
    with torch.device("meta"):
        model = registry.create(name)
    assert [spec.num_tokens for spec in model.specs] == specs
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "width is 15, expected a multiple of num_heads, 2"),
        ({"num_tokens": [5, 3]}, r"num_tokens is \[5, 3\], expected increasing"),
        ({"num_tokens": []}, r"num_tokens is \[\], expected increasing"),
        ({"point_counts": [6, 12]}, r"point_counts is \[6, 12\], expected decreasing"),
        ({"queries": "random"}, "queries is 'random', expected one of 'learned', 'farthest'"),
        ({"extent": 0.0}, r"extent is 0\.0, expected a positive number, or None"),
        ({"anchor_reach": [0.5]}, r"anchor_reach is \[0.5\], expected 2 numbers, one per head, at least 0"),
        ({"anchor_reach": [0.5, -1.0]}, r"anchor_reach is \[0.5, -1.0\], expected 2 numbers"),
        ({"anchor_reach": [0.5, 1]}, r"num_tokens is \[3, 5\], anchor_reach expects cubes: 8, 27, 64"),
        ({**PLACED, "queries": "farthest"}, "queries is 'farthest', anchor_reach expects 'learned'"),
        ({"token_dim": 0}, "token_dim is 0, expected at least 1"),
        ({"encoder_depth": -1}, "encoder_depth is -1, expected at least 0"),
        ({"embed_point_features": True, "point_features": 1}, "point_features is 1, embed_point_features expects 3"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidVAE(**{**TINY, **changes})


def test_wrong_inputs_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"shape \(2, 30, 5\), expected \(b, p, 6\) with p at least 24"):
        model.encode(clouds(channels=5))
    with pytest.raises(ValueError, match=r"shape \(2, 20, 6\), expected \(b, p, 6\) with p at least 24"):
        model.encode(clouds(points=20))
    with pytest.raises(ValueError, match=r"levels is \[1, 0\], expected an increasing choice of \[0, 1\]"):
        model.encode(clouds(), levels=[1, 0])
    with pytest.raises(ValueError, match=r"levels is \[2\]"):
        model(clouds(), levels=[2])
    other = TokenPyramid((torch.zeros(1, 9, 4),), (LevelSpec(9, None, dim=4),))
    with pytest.raises(ValueError, match="comes from another tokenizer"):
        model.decode(other)
    field = model.decode(model.encode(clouds()))
    points = torch.zeros(2, 4, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="points are for 1 shapes, the field holds 2"):
        field.query(points[:1])
    with pytest.raises(ValueError, match="chunk_size is 0"):
        field.query(points, chunk_size=0)
    with pytest.raises(ValueError, match="index is 2, expected 0 to 1"):
        field.shape(2)


def test_integer_clouds_are_refused() -> None:
    # Below the annotated interface, as a caller without runtime type checks would meet it.
    with pytest.raises(TypeError, match=r"dtype torch.int64, expected floating point"):
        tiny()._read_cloud(torch.zeros(1, 30, 6, dtype=torch.int64), False)
