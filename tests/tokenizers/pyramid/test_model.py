from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.pyramid import TokenPyramid, specs_to_json
from hiergen.tokenizers.pyramid.config import PyramidConfig
from hiergen.tokenizers.pyramid.levels import ResidualLevels
from hiergen.tokenizers.pyramid.model import PyramidTokenizer

SIZES: dict[str, Any] = {
    "image_size": 16,
    "backbone_options": {"widths": [8, 12, 16], "depths": [1, 1, 1], "stem": 2},
    "code_dim": 4,
    "vocab_size": 16,
    "decoder_channels": 8,
    "decoder_multipliers": [1, 1],
    "decoder_groups": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "gain": {},
    "plain": {"quantizer": "plain", "refine": False},
    "fsq": {"quantizer": "fsq", "fsq_levels": [3, 3, 2, 2], "vocab_size": 36},
    "continuous": {"vocab_size": None},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(**config: Any) -> PyramidTokenizer:
    torch.manual_seed(0)
    model = PyramidTokenizer(**{**SIZES, **config}).eval()
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images(height: int = 16, width: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@every_kind
def test_what_is_decoded_is_what_forward_gives(kind: str) -> None:
    model, data = make(**KINDS[kind]), images()
    pyramid = model.encode(data)
    assert [spec.grid for spec in pyramid.specs] == [(2, 2), (4, 4), (8, 8)]
    output = model(data)
    assert all(torch.equal(a, b) for a, b in zip(output.pyramid.levels, pyramid.levels, strict=True))
    torch.testing.assert_close(model.decode(pyramid), output.reconstruction, rtol=1e-4, atol=1e-5)
    assert output.reconstruction.shape == data.shape
    assert model.decodable_levels == (1, 2, 3)


@every_kind
def test_a_prefix_is_the_encoding_of_fewer_levels(kind: str) -> None:
    model, data = make(**KINDS[kind]), images()
    pyramid = model.encode(data)
    targets = model._targets(data)
    for count in (1, 2, 3):
        found = model.levels(targets[:count])
        assert all(torch.equal(a, b) for a, b in zip(found.tokens, pyramid.levels, strict=False))
        torch.testing.assert_close(
            model.levels.finish(found.sums[-1], count),
            model.levels.combine(pyramid.levels[:count]),
            atol=1e-5,
            rtol=1e-4,
        )


@every_kind
def test_levels_do_not_depend_on_finer_laterals(kind: str) -> None:
    model, data = make(**KINDS[kind]), images()
    before = model.encode(data)
    with torch.no_grad():
        for parameter in model.laterals[1].parameters():
            parameter.add_(torch.randn_like(parameter))
    after = model.encode(data)
    assert torch.equal(before.levels[0], after.levels[0])
    assert not torch.equal(before.levels[1], after.levels[1])
    assert not torch.equal(before.levels[2], after.levels[2])


def test_levels_add_up_to_the_sum_and_residuals_are_what_is_left() -> None:
    model, data = make(refine=False), images()
    levels = model.levels
    targets = model._targets(data)
    found = levels(targets)
    grown, total = [], torch.zeros(2, 4, 8, 8)
    for level, ids in enumerate(found.tokens):
        side = levels.grids[level][0]
        codes = levels.lookup(ids, level).transpose(1, 2).unflatten(2, (side, side))
        grown.append(F.interpolate(codes, size=8, mode="nearest"))
        total = total + grown[-1]
    torch.testing.assert_close(total, found.sums[-1])
    coarse = F.interpolate(found.sums[0], size=4, mode="nearest")
    torch.testing.assert_close(found.residuals[1], (targets[1] - coarse).flatten(2).transpose(1, 2))
    # The code of a residual is the one whose direction is nearest, times the level's factor.
    book = F.normalize(levels.quantizer.codebook, dim=1)
    nearest = (F.normalize(found.residuals[1], dim=2) @ book.T).argmax(dim=2)
    assert torch.equal(nearest, found.tokens[1])
    torch.testing.assert_close(levels.lookup(nearest, 1), levels.gains[1].exp() * book[nearest])


@every_kind
def test_gradients_reach_everything(kind: str) -> None:
    model = make(**KINDS[kind]).train()
    output = model(images(batch=8), rng=torch.Generator().manual_seed(2))
    (output.reconstruction.square().mean() + sum(output.losses.values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_gradients_pass_straight_through_to_the_residual() -> None:
    config = PyramidConfig(code_dim=4, vocab_size=16, refine=False)
    levels = ResidualLevels(config, [(2, 2)])
    target = torch.randn(1, 4, 2, 2, requires_grad=True)
    weight = torch.randn(1, 4, 2, 2)
    (levels([target]).sums[0] * weight).sum().backward()
    assert torch.equal(target.grad, weight)


def test_training_decodes_prefixes_in_the_wanted_share() -> None:
    model, data = make(drop_prob=0.5).train(), images(batch=1).repeat(64, 1, 1, 1)
    with torch.no_grad():
        made = model(data, rng=torch.Generator().manual_seed(3)).reconstruction
        pyramid = model.encode(data[:1])
        parts = [model.decode(pyramid.prefix(count)) for count in (1, 2, 3)]
    nearest = torch.stack([(made - part).abs().amax(dim=(1, 2, 3)) for part in parts]).argmin(dim=0)
    assert (made - torch.cat(parts)[nearest]).abs().max() < 1e-4
    counts = nearest.bincount(minlength=3)
    # A half, a third and a sixth, within three deviations.
    assert (counts / 64 - torch.tensor([1 / 6, 1 / 3, 1 / 2])).abs().max() < 0.19
    assert counts.min() > 0
    whole = make(drop_prob=0.0).train()
    assert torch.equal(whole(data[:2]).reconstruction, whole.eval()(data[:2]).reconstruction)


@pytest.mark.parametrize(("height", "width"), [(16, 24), (13, 7), (5, 5), (2, 2)])
def test_sizes_that_are_odd_or_not_square(height: int, width: int) -> None:
    model = make(image_size=height, image_width=width)
    data = images(height, width)
    pyramid = model.encode(data)
    assert pyramid.specs[-1].grid == (-(-height // 2), -(-width // 2))
    assert model.decode(pyramid).shape == model.decode(pyramid.prefix(1)).shape == data.shape
    with pytest.raises(
        ValueError, match=rf"images have shape \(2, 3, 99, {width}\), expected \(b, 3, {height}, {width}\)"
    ):
        model.encode(images(99, width))


def test_continuous_tokens_are_drawn_with_a_generator_only() -> None:
    model, data = make(vocab_size=None), images()
    draws = [model.encode(data, rng=torch.Generator().manual_seed(seed)).concat() for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(model.encode(data).concat(), model.encode(data).concat())


def test_a_network_of_timm_is_a_tokenizer_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    options = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}
    save_file(timm.create_model("convnext_atto", **options).state_dict(), tmp_path / "backbone.safetensors")
    model = make(
        image_size=32,
        image_width=48,
        backbone="timm:convnext_atto",
        backbone_options={**options, "out_indices": [1, 2, 3]},
        backbone_weights=str(tmp_path / "backbone.safetensors"),
        decoder_multipliers=[1, 1, 1, 1],
    )
    assert [spec.grid for spec in model.specs] == [(1, 1), (2, 3), (4, 6)]
    model.save_pretrained(tmp_path / "model")
    # The file is not needed again.
    (tmp_path / "backbone.safetensors").unlink()
    again = PyramidTokenizer.from_pretrained(tmp_path / "model")
    data = images(32, 48)
    assert torch.equal(again.decode(again.encode(data)), model.decode(model.encode(data)))


def test_the_generator_of_the_next_scale_runs_on_the_levels() -> None:
    for kind in ("gain", "fsq"):
        model = make(**KINDS[kind])
        generator = NextScaleAR(
            level_specs=specs_to_json(model.specs), num_classes=2, dim=16, depth=1, num_heads=2, filter_ratio=0.0
        )
        generator.take_quantizer(model.next_scale_quantizer)
        loss = generator.loss(model.encode(images()), torch.tensor([0, 1]), rng=torch.Generator().manual_seed(0))
        loss["loss"].backward()
        made = generator.eval().generate(torch.tensor([0, 1]), rng=torch.Generator().manual_seed(0))
        assert model.decode(made).shape == (2, 3, 16, 16)
        smooth = generator.generate(
            torch.tensor([0, 1]), generator.make_settings(smooth=True), rng=torch.Generator().manual_seed(0)
        )
        assert [level.shape for level in smooth.levels] == [(2, count, 4) for count in (4, 16, 64)]
        assert model.decode(smooth).shape == (2, 3, 16, 16)
        # A mixture that is a single code is what its id is.
        single = tuple(model.levels.quantizer.lookup(ids) for ids in made.levels)
        torch.testing.assert_close(model.decode(TokenPyramid(single, smooth.specs)), model.decode(made))
    assert torch.equal(generator.quantizer.codebook, model.levels.quantizer.lookup(torch.arange(36)[None])[0])


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="the decoder has the stride 4, expected 2, the finest of the encoder"):
        make(decoder_multipliers=[1, 1, 1])
    with pytest.raises(
        ValueError, match=r"fsq_levels is \[3, 3\], expected code_dim, 4, numbers whose product is vocab_size, 16"
    ):
        make(quantizer="fsq", fsq_levels=[3, 3])
    with pytest.raises(
        ValueError, match="vocab_size is None, expected a number of codes: continuous levels have no ids"
    ):
        _ = make(vocab_size=None).next_scale_quantizer
    with pytest.raises(ValueError, match="quantizer is 'gain' and vocab_size is None: the tokenizer has no codebook"):
        _ = make(vocab_size=None).quantizer
    model = make()
    other = TokenPyramid((torch.zeros(1, 3, dtype=torch.int64),), (model.specs[0].__class__(3, vocab_size=16),))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(other)
    with pytest.raises(ValueError, match=r"drop_prob is 2\.0, expected 0 to 1"):
        make(drop_prob=2)


@pytest.mark.parametrize(
    ("kind", "vocab", "options"),
    [
        (LevelAR, 16, {"dim": 16, "depth": 1, "num_heads": 2, "num_ar_tokens": 21}),
        (MaskedIds, 16, {"dim": 16, "depth": 1, "num_heads": 2}),
        (FlowTransformer, None, {"dim": 24, "depth": 1, "num_heads": 2}),
        (
            MaskedAR,
            None,
            {
                "head_dim": 16, "head_depth": 1, "num_buffer": 2, "encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2,
                "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2,
            },
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_generators_run_on_the_levels(kind: Any, vocab: int | None, options: dict[str, Any]) -> None:
    model, labels = make(vocab_size=vocab), torch.tensor([0, 1])
    generator = kind(level_specs=specs_to_json(model.specs), num_classes=2, **options)
    rng = torch.Generator().manual_seed(0)
    generator.loss(model.encode(images()), labels, rng=rng)["loss"].backward()
    made = generator.eval().generate(labels, rng=rng)
    assert made.specs == model.specs
    assert model.decode(made).shape == (2, 3, 16, 16)


@every_kind
def test_one_batch_is_learned_by_every_prefix(kind: str) -> None:
    torch.manual_seed(0)
    model = PyramidTokenizer(**{**SIZES, **KINDS[kind], "decoder_channels": 16}).train()
    small = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    data, rng = F.interpolate(small, size=16, mode="bilinear"), torch.Generator().manual_seed(0)

    def errors() -> list[float]:
        with torch.no_grad():
            pyramid = model.encode(data)
            return [float((model.decode(pyramid.prefix(k)) - data).square().mean()) for k in (1, 2, 3)]

    before, optimizer = errors(), torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        output = model(data, rng=rng)
        optimizer.zero_grad()
        (10 * (output.reconstruction - data).square().mean() + sum(output.losses.values())).backward()
        optimizer.step()
    after = errors()
    assert all(late < 0.5 * early for late, early in zip(after, before, strict=True))
    # The numbers of the coarsest level alone can hold these images; its ids cannot.
    assert kind == "continuous" or after[0] > after[1] > after[2]
