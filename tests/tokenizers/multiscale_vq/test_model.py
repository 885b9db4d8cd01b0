from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.levels import square_specs
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ

SIZES = {
    "widths": [32, 32, 64],
    "num_blocks": 1,
    "code_dim": 6,
    "vocab_size": 17,
    "image_size": 16,
    "sides": [1, 2, 3, 4],
}


def make(**config: Any) -> MultiScaleVQ:
    torch.manual_seed(0)
    model = MultiScaleVQ(**{**SIZES, **config}).eval()
    torch.nn.init.normal_(model.quantizer.codebook, std=0.3)
    return model


def images(size: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_levels_are_scales_and_every_prefix_is_an_image() -> None:
    model = make()
    pyramid = model.encode(images())
    assert pyramid.specs == model.specs == square_specs((1, 2, 3, 4), dim=6, vocab_size=17)
    assert model.decodable_levels == (1, 2, 3, 4)
    decoded = [model.decode(pyramid.prefix(count)) for count in model.decodable_levels]
    assert all(image.shape == (2, 3, 16, 16) for image in decoded)
    assert all(not torch.equal(one, other) for one, other in itertools.pairwise(decoded))
    # What a level adds depends on nothing behind it.
    changed = TokenPyramid((*pyramid.levels[:3], (pyramid.levels[3] + 1) % 17), pyramid.specs)
    assert torch.equal(model.decode(changed.prefix(3)), decoded[2])
    assert not torch.equal(model.decode(changed), decoded[3])


def test_forward_is_encode_and_decode_with_gradients() -> None:
    model, data = make().train(), images()
    output = model(data)
    assert torch.equal(output.pyramid.concat(), model.encode(data).concat())
    torch.testing.assert_close(output.reconstruction, model.decode(output.pyramid), rtol=1e-4, atol=1e-5)
    (output.reconstruction.square().mean() + output.losses["quantizer"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert model.quantizer.codebook.grad.abs().sum() > 0
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    assert model.output_weight is model.decoder.conv_out.weight


def test_mixtures_of_codes_are_decoded_too() -> None:
    model = make()
    pyramid = model.encode(images())
    mixed = tuple(dataclasses.replace(spec, vocab_size=None) for spec in model.specs)
    codes = TokenPyramid(tuple(model.quantizer.embed(ids) for ids in pyramid.levels), mixed)
    assert torch.equal(model.decode(codes), model.decode(pyramid))
    assert torch.equal(model.decode(codes.prefix(2)), model.decode(pyramid.prefix(2)))


def test_the_same_weights_serve_another_size(tmp_path: Path) -> None:
    model = make(track_usage=True)
    model.save_pretrained(tmp_path)
    larger = MultiScaleVQ.from_pretrained(tmp_path, image_size=32, sides=[1, 3, 5, 8])
    assert [spec.num_tokens for spec in larger.specs] == [1, 9, 25, 64]
    assert larger.decode(larger.encode(images(32))).shape == (2, 3, 32, 32)
    assert all(torch.equal(value, larger.state_dict()[name]) for name, value in model.state_dict().items())
    same = MultiScaleVQ.from_pretrained(tmp_path)
    assert torch.equal(same.encode(images()).concat(), model.encode(images()).concat())


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_any_kernel_keeps_the_size(kernel: int) -> None:
    assert make(code_kernel=kernel)(images()).reconstruction.shape == (2, 3, 16, 16)


def test_low_precision_keeps_the_quantizer() -> None:
    model = make()
    wanted = model.decode(model.encode(images()))
    model.to(torch.bfloat16)
    assert model.quantizer.codebook.dtype == torch.float32
    assert model.decode(model.encode(images())).dtype == torch.bfloat16
    assert (model.decode(make().encode(images())).float() - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_presets() -> None:
    with torch.device("meta"):
        for name, count in (("multiscale-vq-680", 680), ("multiscale-vq-2240", 2240)):
            model = create(name)
            assert sum(spec.num_tokens for spec in model.specs) == count
            assert sum(parameter.numel() for parameter in model.parameters()) == 108_948_355
        parts = (model.encoder, model.decoder, model.quantizer, model.to_code)
        counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
        assert counts == [44_107_872, 64_653_923, 168_064, 9_248]


def test_errors() -> None:
    for config, message in (
        ({"image_size": 18}, "image_size is 18, expected a multiple of the stride 4"),
        ({"sides": [1, 2]}, r"sides is \[1, 2\], expected to end with 4: image_size 16 over the stride 4"),
        ({"sides": []}, r"sides is \[\], expected to end with 4"),
        ({"code_kernel": 2}, "code_kernel is 2, expected an odd number"),
        ({"sides": [5, 4]}, "expected sides of at least 1, none larger than those of the last grid"),
        ({"widths": [20, 32, 64]}, "widths is"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**config)
    model = make()
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 8, 8\), expected \(b, 3, 16, 16\)"):
        model.encode(images(8))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        model.decode(TokenPyramid((torch.zeros(1, 4, dtype=torch.int64),), model.specs[1:2]))
