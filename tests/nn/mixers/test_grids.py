"""Mixers where transformers have self-attention: in HieraTok's encoder and in the flow transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.generators.flow.model import FlowTransformer
from hiergen.levels import square_specs
from hiergen.nn.mixers.create import MIXERS
from hiergen.nn.mixers.grids import GridMixer, grid_mixers
from hiergen.pyramid import TokenPyramid, specs_to_json
from hiergen.tokenizers.hieratok.model import HieraTok

WINDOW = {"name": "window", "window": 2}


def flow(**options: Any) -> FlowTransformer:
    torch.manual_seed(0)
    specs = square_specs(options.pop("sides", (2, 4)), dim=4, vocab_size=None)
    return FlowTransformer(level_specs=specs_to_json(specs), num_classes=2, dim=16, depth=3, num_heads=1, **options)


def test_levels_are_mixed_each_by_itself() -> None:
    torch.manual_seed(0)
    mixer = GridMixer({"name": "attention"}, 8, 2, [(2, 2), (3, 4)])
    x = torch.randn(2, 16, 8)
    mixed = mixer(x)
    assert torch.equal(mixed[:, :4], mixer.mixer(x[:, :4].unflatten(1, (2, 2))).flatten(1, 2))
    assert torch.equal(mixed[:, 4:], mixer.mixer(x[:, 4:].unflatten(1, (3, 4))).flatten(1, 2))
    # The first levels alone are what they are beside the others.
    assert torch.equal(mixer(x[:, :4]), mixed[:, :4])


@pytest.mark.parametrize("name", MIXERS)
def test_the_flow_transformer_takes_every_mixer(name: str) -> None:
    model = flow(mixer={"name": name})
    assert [isinstance(block.attention, GridMixer) for block in model.blocks] == [True, False, True]
    # A new block is the identity; this one is not.
    for block in model.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.1)
    torch.nn.init.normal_(model.final_linear.weight, std=0.1)
    rng = torch.Generator().manual_seed(1)
    pyramid = TokenPyramid(tuple(torch.randn(2, n, 4, generator=rng) for n in (4, 16)), model.specs)
    model.loss(pyramid, torch.tensor([0, 1]), rng=rng)["loss"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.blocks.parameters()
        if parameter.requires_grad
    )


def test_hieratok_takes_a_mixer_and_keeps_it(tmp_path: Any) -> None:
    torch.manual_seed(0)
    sizes = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("dim", 16), ("heads", 2))}
    model = HieraTok(
        image_size=16, patch_size=4, scales=[2, 4], encoder_depth=2, decoder_depth=1, encoder_mixer=WINDOW, **sizes
    ).eval()
    assert all(block.attention.mixer.window == 2 for block in model.encoder.blocks)
    data = torch.rand(2, 3, 16, 16) * 2 - 1
    # Windows of two by two patches do not see each other.
    changed = data.clone()
    changed[:, :, :8, :8] = 0
    features = [model.encoder(images).unflatten(1, (4, 4)) for images in (data, changed)]
    assert torch.equal(features[0][:, 2:], features[1][:, 2:])
    assert not torch.equal(features[0][:, :2, :2], features[1][:, :2, :2])
    model.save_pretrained(tmp_path)
    again = HieraTok.from_pretrained(tmp_path)
    assert torch.equal(again.decode(again.encode(data)), model.decode(model.encode(data)))


def test_what_does_not_fit_is_named() -> None:
    assert grid_mixers(None, "all", 2, 8, 2, [(2, 2), (4, 4)]) == [None, None]
    with pytest.raises(
        ValueError, match="mixer_blocks is 'all' with 2 levels, expected 'alternate', or 'all' with one"
    ):
        flow(mixer=WINDOW, mixer_blocks="all")
    assert all(
        isinstance(block.attention, GridMixer) for block in flow(sides=(4,), mixer=WINDOW, mixer_blocks="all").blocks
    )
    with pytest.raises(
        ValueError, match=r"mixer is \{'window': 2\}, expected an entry 'name', e.g. \{'name': 'window'"
    ):
        flow(mixer={"window": 2})
    with pytest.raises(
        ValueError, match=r"mixer is 'window', expected none on the grids \[\(2, 2, 2\)\]: it takes rows and"
    ):
        GridMixer(WINDOW, 8, 2, [(2, 2, 2)])
    with pytest.raises(
        ValueError, match="attention is given beside mixer, expected one of them: sparse attention reorders"
    ):
        flow(sides=(4,), mixer=WINDOW, attention={})
