from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.evaluation.images.probes import (
    ProbeSettings,
    _score,
    boxes,
    counts,
    edges,
    foreground,
    mean_colors,
    prefix_maps,
    probe_prefixes,
)
from hiergen.registry import create
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ
from hiergen.tokenizers.pyramid.model import PyramidTokenizer

SIZES: dict[str, Any] = {
    "image_size": 16,
    "backbone_options": {"widths": [8, 8], "depths": [0, 0], "stem": 4},
    "code_dim": 4,
    "vocab_size": None,
    "decoder_channels": 8,
    "decoder_multipliers": [1, 1, 1],
    "decoder_groups": 4,
}
QUICK = ProbeSettings(steps=60, batch_size=16, lr=0.05)


def pictures(count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images whose cells of four by four pixels are dark or light, and which is which."""
    light = torch.rand(count, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    labels = light.repeat_interleave(4, 1).repeat_interleave(4, 2).long()
    return (labels[:, None] * 2.0 - 1.0).expand(-1, 3, -1, -1).contiguous(), labels


def tokenizer() -> PyramidTokenizer:
    torch.manual_seed(0)
    return PyramidTokenizer(**SIZES).eval()


def test_what_the_finest_level_tells_is_found_and_the_coarse_tells_less() -> None:
    images, labels = pictures()
    model = tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = probe_prefixes(model, images, labels, num_test=16, settings=QUICK)
    assert [score.num_levels for score in scores] == [0, 1, 2]
    constant, coarse, fine = (score.score for score in scores)
    assert 0.2 < constant < 0.3
    assert constant < coarse < fine
    assert fine > 0.8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = probe_prefixes(model, images, labels, num_test=16, settings=QUICK)
    assert [score.score for score in again] == [score.score for score in scores]


def test_numbers_are_explained_and_convolutions_see_further() -> None:
    images, _ = pictures()
    found = {}
    for kind in ("linear", "convolutions"):
        settings = ProbeSettings(kind=kind, steps=100, batch_size=16, hidden_dim=16)
        scores = probe_prefixes(tokenizer(), images, edges(images), num_test=16, settings=settings)
        assert abs(scores[0].score) < 0.05
        found[kind] = scores[-1].score
    # An edge is a difference of cells, which a layer of every cell cannot see.
    assert found["convolutions"] > found["linear"] + 0.1


def test_unlabeled_pixels_do_not_count() -> None:
    targets = torch.tensor([[[0, 1, -1, 1]]])
    answers = torch.tensor([[[[2.0, 0.0, 9.0, 2.0]], [[1.0, 1.0, 0.0, 1.0]]]])
    # Class 0: one of the two said; class 1: one of its two found.
    assert _score(answers, targets) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_edges_of_a_ramp_are_its_slope() -> None:
    ramp = torch.linspace(-1, 1, 9).expand(1, 3, 5, 9)
    assert torch.allclose(edges(ramp)[:, :, 1:-1], torch.tensor(0.25))
    assert torch.allclose(edges(ramp.mT)[:, 1:-1], torch.tensor(0.25))
    assert not edges(torch.ones(1, 3, 4, 4)).any()


def test_the_maps_are_what_is_decoded() -> None:
    images, _ = pictures(2)
    model = tokenizer()
    pyramid = model.encode(images)
    torch.testing.assert_close(model.decoder(prefix_maps(model, pyramid.prefix(1))), model.decode(pyramid.prefix(1)))
    var = MultiScaleVQ(widths=[32, 32], num_blocks=1, code_dim=4, vocab_size=8, image_size=16, sides=[1, 4, 8]).eval()
    maps = prefix_maps(var, var.encode(images).prefix(2))
    torch.testing.assert_close(var.decoder(var.from_code(maps)), var.decode(var.encode(images).prefix(2)))
    apart = prefix_maps(model, pyramid, reads="levels")
    assert torch.equal(apart[:, 4:], pyramid.levels[1].mT.unflatten(2, (4, 4)))
    assert torch.equal(apart[:, :4, ::2, ::2], pyramid.levels[0].mT.unflatten(2, (2, 2)))
    assert prefix_maps(var, var.encode(images), reads="levels").shape == (2, 12, 8, 8)


def test_what_does_not_fit_is_named() -> None:
    images, labels = pictures(4)
    with pytest.raises(ValueError, match=r"targets have shape \(4, 8, 16\), expected \(4, 16, 16\)"):
        probe_prefixes(tokenizer(), images, labels[:, :8], num_test=1)
    with pytest.raises(ValueError, match="num_test is 4, expected 1 to 3, some of the 4 images"):
        probe_prefixes(tokenizer(), images, labels, num_test=4)
    flat = create("restok-tiny", image_size=16, encoder_depth=4, decoder_depth=1).eval()
    with pytest.raises(ValueError, match="ResTok has no probes, expected a PyramidTokenizer or a MultiScaleVQ"):
        prefix_maps(flat, flat.encode(images))


def test_what_is_asked_of_the_whole_picture_is_found() -> None:
    images, labels = pictures(96)
    # As small as shares of a picture may be, or large.
    upper = 0.7 + 1e-4 * labels[:, :8].float().mean(dim=(1, 2))
    targets = {
        "class": (upper > upper.median()).long(),
        "numbers": torch.stack((upper, 100 * labels[:, 0, 0].float()), dim=1),
    }
    for kind in ("linear", "convolutions"):
        settings = ProbeSettings(kind=kind, steps=100, batch_size=32, hidden_dim=8, lr=0.02, weight_decay=0.01)
        for name, wanted in targets.items():
            constant, _, fine = (
                score.score for score in probe_prefixes(tokenizer(), images, wanted, num_test=32, settings=settings)
            )
            assert constant < 0.1 if name == "numbers" else 0.3 < constant < 0.7
            assert fine > 0.7, (kind, name)
    with pytest.raises(ValueError, match=r"targets have shape \(95,\), expected \(96,\)"):
        probe_prefixes(tokenizer(), images, targets["class"][1:], num_test=32)


def test_every_number_of_a_picture_is_explained_by_itself() -> None:
    targets = torch.tensor([[0.0, 100.0], [1.0, 300.0]])
    # The first is right, of the second a part is explained.
    answers = torch.tensor([[0.0, 200 - 70.7107], [1.0, 200 + 70.7107]])
    assert _score(answers, targets) == pytest.approx((1 + 1 - (1 - 0.707107) ** 2) / 2, abs=1e-5)
    assert _score(answers[:, :1], torch.ones(2, 1)) == 0.0
    assert _score(torch.tensor([[3.0, 1.0], [0.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 0, -1])) == 0.5


def test_targets_of_an_object_on_a_background() -> None:
    images = torch.full((2, 3, 8, 10), 0.5)
    images[0, :, 2:5, 6:8] = torch.tensor([1.0, -1.0, 0.0])[:, None, None]
    images[0, :, 7, 9] = 0.55
    mask = foreground(images)
    assert mask[0].nonzero().tolist() == [[row, column] for row in (2, 3, 4) for column in (6, 7)]
    torch.testing.assert_close(boxes(mask), torch.tensor([[3.5 / 8, 0.7, 3 / 8, 0.2], [0.5, 0.5, 1.0, 1.0]]))
    assert torch.equal(mean_colors(images, mask), torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_parts_are_counted_that_touch_nowhere() -> None:
    mask = torch.zeros(3, 6, 8, dtype=torch.long)
    mask[0, :2, :2] = mask[0, 2:4, 2:4] = 1  # joined at a corner
    mask[0, :2, 5:7] = 1
    mask[0, 5, :3] = 1  # too small
    mask[1] = 1
    assert counts(mask).tolist() == [[2.0], [1.0], [0.0]]
    assert counts(mask, least=1).tolist() == [[3.0], [1.0], [0.0]]
