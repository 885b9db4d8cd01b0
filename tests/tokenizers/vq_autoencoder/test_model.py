from __future__ import annotations

from pathlib import Path

import jaxtyping
import pytest
import torch

import hiergen
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.tokenizers.vq_autoencoder.model import VQAutoencoder
from hiergen.tokenizers.vq_autoencoder.network import make_decoder, make_encoder


def make(**config: object) -> VQAutoencoder:
    torch.manual_seed(0)
    sizes = {"widths": [32, 32, 64], "num_blocks": 1, "latent_channels": 16, "code_dim": 4, "vocab_size": 29}
    return VQAutoencoder(**{**sizes, "image_size": 16, **config}).eval()


def images(batch: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1


@torch.no_grad()
def test_tokens_are_the_cells_of_the_map_row_by_row() -> None:
    model = make()
    assert model.specs == (LevelSpec(16, (4, 4), 4, 29),)
    assert model.decodable_levels == (1,)
    pyramid = model.encode(images())
    latents = model.to_code(model.encoder(images()))
    cosines = torch.einsum("bkhw,vk->bhwv", latents, torch.nn.functional.normalize(model.quantizer.codebook, dim=1))
    assert torch.equal(pyramid.levels[0], cosines.argmax(dim=-1).flatten(1))
    alone = model.encode(images()[1:])
    assert torch.equal(alone.levels[0], pyramid.levels[0][1:])
    torch.testing.assert_close(model(images()).reconstruction, model.decode(pyramid), rtol=1e-4, atol=1e-5)
    # The weights fit every size.
    wide = make(image_size=24)
    wide.load_state_dict(model.state_dict())
    assert wide.encode(images(size=24)).levels[0].shape == (2, 36)


def test_every_weight_learns() -> None:
    model = make(entropy_weight=0.1).train()
    out = model(images())
    assert set(out.losses) == {"quantizer", "entropy"}
    (out.reconstruction.square().mean() + sum(out.losses.values())).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.output_weight.grad.abs().sum() > 0
    assert model.encoder.conv_in.weight.grad.abs().sum() > 0
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    out = model(images())
    (out.reconstruction.square().mean() + sum(out.losses.values())).backward()
    for before, parameter in zip(plain, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, before, rtol=1e-4, atol=1e-6)


def test_saved_and_loaded_are_equal(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    loaded = hiergen.from_pretrained(tmp_path)
    assert isinstance(loaded, hiergen.VQAutoencoder)
    assert not loaded.training
    assert torch.equal(loaded.encode(images()).levels[0], model.encode(images()).levels[0])
    half = hiergen.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.decode(half.encode(images())).dtype == torch.bfloat16


def test_presets_have_the_strides_they_are_named_for() -> None:
    for name, tokens in (("vq-16", 256), ("vq-8", 1024)):
        with torch.device("meta"):
            model = create(name)
        assert model.specs[0].num_tokens == tokens
        assert model.specs[0].vocab_size == 16384


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="image_size is 18, expected a multiple of the stride 4"):
        make(image_size=18)
    with pytest.raises(ValueError, match=r"widths is \[32, 40\], expected at least one multiple of 32"):
        make(widths=[32, 40])
    with pytest.raises(ValueError, match=r"widths is \[\], expected at least one multiple of 32"):
        make_encoder([], out_channels=3)
    with pytest.raises(ValueError, match=r"widths is \[33\], expected"):
        make_decoder([33], in_channels=3)
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 8, 16\)"):
        make().encode(images()[:, :, :8])
    foreign = TokenPyramid((torch.zeros(1, 9, dtype=torch.int64),), (LevelSpec(9, (3, 3), 4, 29),))
    with pytest.raises(ValueError, match="they come from another tokenizer"):
        make().decode(foreign)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"images have dtype torch\.uint8"):
        make().encode(images().to(torch.uint8))
