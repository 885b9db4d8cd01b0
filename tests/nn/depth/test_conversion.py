import itertools

import pytest
import torch

from hiergen.nn.blocks.transformer import EncoderBlock
from hiergen.nn.depth.conversion import factorize, fold_vectors, share_blocks, shared_start, to_ladder, to_recursive
from hiergen.nn.depth.deltas import ParameterDelta
from hiergen.nn.depth.stack import BlockStack
from hiergen.registry import create
from tests.nn.depth.test_models import build, loss_of, pyramid

STARTS = ("average", "stepwise", "lower")
FULL = 10_000


def trained(name: str, dtype: torch.dtype = torch.float64):
    """Return a tiny model of four layers whose norms, biases and scales are not those of the start."""
    model = build(name, None)
    rng = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return (model if dtype == torch.float32 else model.to(dtype)).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(pyramid(model).concat(), torch.tensor([0, 1]))


@pytest.mark.parametrize(("start", "vectors"), itertools.product(STARTS, ("own", "folded")))
def test_full_rank_is_the_original(start, vectors) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = trained("har-tiny", dtype)
        expected = logits(model)
        found = logits(to_recursive(model, loops=2, rank=FULL, start=start, vectors=vectors))
        assert (found - expected).abs().max() < tolerance * expected.abs().max()


def test_shared_norms_and_a_scale_are_not_the_original() -> None:
    model = trained("har-tiny")
    expected = logits(model)
    for start in STARTS:
        found = logits(to_recursive(model, loops=2, rank=FULL, start=start, vectors="shared"))
        assert (found - expected).abs().max() > 1e-2 * expected.abs().max()
    scaled = to_recursive(model, loops=2, rank=FULL)
    for module in scaled.modules():
        if isinstance(module, ParameterDelta):
            for parameter in module.up.parameters():
                parameter.data.mul_(2)
    assert (logits(scaled) - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "vectors"),
    [("mar-tiny", "own"), ("mar-tiny", "folded"), ("restok-tiny", "own"), ("hieratok-tiny", "folded")],
)
def test_full_rank_is_the_original_in_models_of_two_stacks(name: str, vectors) -> None:
    model = trained(name, torch.float32)
    expected = loss_of(model, name)
    for start in STARTS:
        made = to_recursive(model, loops=2, rank=FULL, start=start, vectors=vectors)
        assert loss_of(made, name).item() == pytest.approx(expected.item(), rel=2e-4)
    assert set(made.config["plan"]) == {"encoder", "decoder"}
    only = to_recursive(model, loops=2, parts=("decoder",))
    assert (only.config["encoder_depth"], only.config["decoder_depth"], set(only.config["plan"])) == (4, 2, {"decoder"})
    assert loss_of(only, name).item() != pytest.approx(expected.item(), rel=2e-4)


def test_the_error_of_the_weights_falls_with_the_rank_and_the_average_is_nearest() -> None:
    layers = [layer.attention.qkv.weight.detach() for layer in trained("har-tiny").blocks]
    totals = {}
    for start in STARTS:
        residuals = [layer - shared_start(layers, 2, start)[index % 2] for index, layer in enumerate(layers)]
        errors = []
        for rank in range(33):
            parts = [factorize(residual, rank) for residual in residuals]
            errors.append(sum((r - u @ a).square().sum() for r, (u, a) in zip(residuals, parts, strict=True)).item())
        assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
        assert errors[-1] < 1e-20
        totals[start] = errors[0]
    assert min(totals, key=totals.__getitem__) == "average"
    first, _, third, _ = (x - shared_start(layers, 2, "average")[i % 2] for i, x in enumerate(layers))
    torch.testing.assert_close(first, -third, rtol=0, atol=1e-15)


def test_folding_changes_nothing() -> None:
    for name in ("har-tiny", "mar-tiny", "hieratok-tiny"):
        model = trained(name)
        stack = next(module for module in model.modules() if isinstance(module, BlockStack))
        block, x = stack[0], torch.randn(2, 8, stack[0].get_parameter(next(iter(_norms(stack[0])))).numel()).double()
        inputs = [_rotary(x, block)] if type(block).__name__ == "CachedBlock" else []
        expected = block(x, *inputs)
        fold_vectors(block)
        torch.testing.assert_close(block(x, *inputs), expected, rtol=0, atol=1e-12)
        assert all(torch.equal(block.get_parameter(n), torch.ones_like(block.get_parameter(n))) for n in _norms(block))


def _norms(block) -> list[str]:
    return [name for name, p in block.named_parameters() if "norm" in name and name.endswith("weight") and p.ndim == 1]


def _rotary(x: torch.Tensor, block) -> torch.Tensor:
    from hiergen.nn.positions import rotary_table

    return rotary_table(torch.arange(8, dtype=torch.float64)[:, None], x.shape[-1] // block.attention.num_heads)


def test_ranks_differ_by_step_and_are_capped_by_the_matrix() -> None:
    made = to_recursive(trained("har-tiny"), loops=2, rank=[0, 2, 4, FULL], vectors="own")
    deltas = [block.deltas[str(index)] for index, block in enumerate([*made.blocks, *made.blocks])]
    shapes = [tuple(p.shape) for d in deltas for n, p in d.up.named_parameters() if n == "ffn.down.weight"]
    assert shapes == [(32, 2), (32, 4), (32, 32)]
    assert [step.get("rank", 0) for step in made.config["plan"]] == [0, 2, 4, FULL]


def test_the_published_numbers_of_parameters_are_met() -> None:
    """Gemma 2B, 18 layers, non-embedding, in billions: grouped keys and values bind the rank, and the first loop differs too."""
    matrices = [(2048, 2048), (256, 2048), (256, 2048), (2048, 2048), (16384, 2048), (16384, 2048), (2048, 16384)]
    layer = sum(rows * columns for rows, columns in matrices)
    published = {2: {0: 0.99, 64: 1.07, 128: 1.15, 256: 1.30, 512: 1.60}, 3: {0: 0.66, 64: 0.74, 256: 0.97, 512: 1.27}}
    for loops, counts in published.items():
        for rank, expected in counts.items():
            capped = sum(min(rank, rows, columns) * (rows + columns) for rows, columns in matrices)
            assert (layer * 18 / loops + 18 * capped) / 1e9 == pytest.approx(expected, abs=0.006)


def test_a_ladder_keeps_the_weights_and_is_another_function() -> None:
    model = trained("har-tiny")
    made = to_ladder(model, last=2)
    assert list(made.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))
    assert [step.lag for step in made.blocks.plan.steps] == [0, 0, 1, 1]
    assert (logits(made) - logits(model)).abs().max() > 1e-3
    assert torch.equal(logits(to_ladder(model, last=0)), logits(model))


def test_names_of_classes_stay() -> None:
    model = trained("har-tiny")
    model.register_to_config(id2label={"0": "zero"})
    assert to_recursive(model, loops=2).config["id2label"] == {"0": "zero"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loops": 3}, "loops is 3, expected a divisor of the 4 blocks"),
        ({"loops": 0}, "loops is 0, expected a divisor"),
        ({"loops": 2, "rank": [1, 2]}, r"rank is \[1, 2\], expected one number, or one of each of the 4 steps"),
        ({"loops": 2, "start": "upper"}, "start is 'upper', expected one of"),
        ({"loops": 2, "vectors": "none"}, "vectors is 'none', expected one of"),
        ({"loops": 2, "parts": ["decoder"]}, "parts holds 'decoder', but the stacks of a LevelAR are"),
    ],
)
def test_conversions_refuse_what_does_not_fit(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_recursive(build("har-tiny", None), **options)


def test_conversions_need_plain_stacks_and_norms_that_can_be_folded() -> None:
    model = build("har-tiny", None)
    with pytest.raises(ValueError, match="the plan of blocks is not plain"):
        to_ladder(to_ladder(model))
    with pytest.raises(ValueError, match="KLAutoencoder has no stack of transformer blocks"):
        to_ladder(create("kl-16", image_size=16, autoencoder={**SMALL_VAE}))
    with pytest.raises(ValueError, match="vectors is 'folded', but the blocks are PositionModulatedBlock, expected"):
        to_recursive(build("rar-tiny", None), loops=2, vectors="folded")
    unbiased = BlockStack([EncoderBlock(16, 2, qkv_bias=False)])
    with pytest.raises(ValueError, match=r"vectors is 'folded', but norm1 has a bias and attn\.qkv has none"):
        fold_vectors(unbiased[0])
    with pytest.raises(ValueError, match="start is 'upper', expected one of"):
        share_blocks(model.blocks, model.blocks, start="upper")  # type: ignore[arg-type]


SMALL_VAE = {
    "block_out_channels": [32],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 16,
}
