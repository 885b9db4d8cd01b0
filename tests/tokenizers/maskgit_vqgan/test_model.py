from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.maskgit_vqgan.model import MaskGITVQ

SMALL: dict[str, Any] = {"image_size": 8, "cnn_channels": 8, "cnn_multipliers": [1, 2], "cnn_blocks": 1}
SMALL |= {"cnn_mid_blocks": 1, "cnn_groups": 4, "z_channels": 6, "vocab_size": 12}


def small(**overrides: Any) -> MaskGITVQ:
    torch.manual_seed(1)
    return MaskGITVQ(**{**SMALL, **overrides})


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_the_preset_has_the_measured_numbers_of_parameters() -> None:
    with torch.device("meta"):
        model = create("maskgit-vq")
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.pixel_encoder, model.pixel_decoder)]
    assert [*counts, model.quantizer.codebook.numel()] == [23_775_104, 30_478_339, 262_144]
    assert model.specs == (LevelSpec(256, (16, 16), dim=256, vocab_size=1024),)


def test_forward_is_encode_and_decode() -> None:
    model = small().eval()
    output, pyramid = model(images()), model.encode(images())
    assert torch.equal(output.pyramid.levels[0], pyramid.levels[0])
    torch.testing.assert_close(output.reconstruction, model.decode(pyramid))
    assert list(output.losses) == ["quantizer"]


def test_the_loss_of_one_batch_falls() -> None:
    model, x, losses = small(cnn_shortcut="input").train(), images(4), []
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(40):
        output = model(x)
        loss = (output.reconstruction - x).square().mean() + output.losses["quantizer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_saved_and_loaded_is_equal(tmp_path: Path) -> None:
    model = small().eval()
    model.save_pretrained(tmp_path)
    loaded = MaskGITVQ.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded.encode(images()).levels[0], model.encode(images()).levels[0])


def test_bfloat16_keeps_the_pixel_decoder_wide() -> None:
    model = small().eval()
    pyramid = model.encode(images())
    wide = model.decode(pyramid)
    narrow = torch.nn.Module.to(model, torch.bfloat16)
    assert float((narrow.decode(pyramid) - wide).detach().abs().max()) < 0.1
    assert narrow.encode(images().bfloat16()).levels[0].dtype == torch.int64
    assert narrow.pixel_decoder.conv_in.weight.dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 9, expected a multiple of the convolutions' stride, 2"):
        small(image_size=9)
    with pytest.raises(ValueError, match="vocab_size is 0, expected at least 1"):
        small(vocab_size=0)
    with pytest.raises(ValueError, match="images have shape"):
        small().encode(torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        small().decode(TokenPyramid((torch.zeros(1, 5, dtype=torch.int64),), (LevelSpec(5, dim=6, vocab_size=12),)))
