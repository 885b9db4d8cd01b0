from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import hiergen
from hiergen.data.config import DataConfig
from hiergen.data.sources import open_images
from hiergen.generators.level_ar.model import LevelAR
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.tokenizers.pyramid.model import PyramidTokenizer
from hiergen.tokenizers.super_resolution.model import SuperResolution
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import TokenizerTaskConfig

BASE: dict[str, Any] = {
    "image_size": 16,
    "backbone_options": {"widths": [8, 12], "depths": [0, 0], "stem": 4},
    "code_dim": 4,
    "vocab_size": 16,
    "decoder_channels": 8,
    "decoder_multipliers": [1, 1, 1],
    "decoder_groups": 4,
}
SIZES: dict[str, Any] = {"dim": 8, "growth": 4, "groups": 1, "num_heads": 2, "last_dim": 8, "window": 4}


def make(**options: Any) -> SuperResolution:
    torch.manual_seed(0)
    return SuperResolution(**{"base": {"class": "PyramidTokenizer", **BASE}, **SIZES, **options}).eval()


def images(side: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_tokens_are_those_of_the_base_and_every_prefix_is_made_larger() -> None:
    model, data = make(), images()
    small = F.interpolate(data, size=16, mode="bicubic", antialias=True).clamp(-1, 1)
    pyramid = model.encode(data)
    assert pyramid.specs == model.specs == model.base_tokenizer.specs
    assert all(
        torch.equal(a, b) for a, b in zip(pyramid.levels, model.base_tokenizer.encode(small).levels, strict=True)
    )
    for count in model.decodable_levels:
        part = model.base_tokenizer.decode(pyramid.prefix(count)).clamp(-1, 1)
        # An untrained upscaler is bicubic interpolation.
        expected = F.interpolate(part, scale_factor=2, mode="bicubic")
        torch.testing.assert_close(model.decode(pyramid.prefix(count)), expected)
    assert torch.equal(model(data).reconstruction, model.decode(pyramid))
    assert make(scale=4).config["image_size"] == 64


def test_the_base_is_frozen_and_stays_in_eval_mode() -> None:
    model = make().train()
    assert model.upscaler.training
    assert not model.base_tokenizer.training
    model(images()).reconstruction.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.base_tokenizer.parameters())
    assert model.output_weight.grad is not None


def test_weights_of_the_base_are_read_once(tmp_path: Path) -> None:
    torch.manual_seed(2)
    base = PyramidTokenizer(**BASE).eval()
    base.save_pretrained(tmp_path / "base")
    model = SuperResolution(base_weights=str(tmp_path / "base"), **SIZES).eval()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "base" / "config.json").unlink()
    again = hiergen.from_pretrained(tmp_path / "model")
    assert isinstance(again, SuperResolution)
    data = images()
    assert torch.equal(again.decode(again.encode(data)), model.decode(model.encode(data)))
    assert torch.equal(again.encode(data).concat(), base.encode(model.reduce(data)).concat())
    assert not again.base_tokenizer.training
    with pytest.raises(
        FileNotFoundError, match=r"base_weights is '.*base', expected 'random' or the folder of a saved"
    ):
        SuperResolution(base_weights=str(tmp_path / "base"), **SIZES)
    torch.testing.assert_close(
        SuperResolution.of(base, **SIZES).encode(data).concat(), base.encode(model.reduce(data)).concat()
    )


def test_a_pipeline_makes_larger_images_of_the_same_tokens() -> None:
    base = make().base_tokenizer
    generator = LevelAR(
        level_specs=specs_to_json(base.specs), num_classes=2, dim=16, depth=1, num_heads=2, num_ar_tokens=5
    )
    made = [
        ClassToImagePipeline(tokenizer=tokenizer, generator=generator.eval())(
            [0, 1], generator=torch.Generator().manual_seed(0), output_type="pt"
        )
        for tokenizer in (base, SuperResolution.of(base, **SIZES))
    ]
    assert torch.equal(made[0].pyramid.concat(), made[1].pyramid.concat())
    expected = F.interpolate(made[0].images, scale_factor=2, mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(made[1].images, expected)


def test_a_short_training_beats_bicubic_interpolation(tmp_path: Path) -> None:
    make().base_tokenizer.save_pretrained(tmp_path / "base")
    data = DataConfig(size=32)
    config = TrainConfig(
        task=TokenizerTaskConfig(
            preset="drct-tiny-84", overrides={**SIZES, "base": {}, "base_weights": str(tmp_path / "base")}, data=data
        ),
        out=str(tmp_path / "run"),
        samples=240,
        batch_size=8,
        optim=OptimConfig(lr=3e-3, warmup_samples=16),
        ema_decay=0.5,
    )
    assert {p.device.type for p in config.task.sketch()["tokenizer"].parameters()} == {"meta"}
    fit(config)
    model = hiergen.from_pretrained(tmp_path / "run" / "model").eval()
    held_out = open_images(DataConfig(size=32, split="test")).images[:32]
    with torch.no_grad():
        small = model.decode_small(model.encode(held_out))
        bicubic = F.interpolate(small, scale_factor=2, mode="bicubic")
        errors = [(made - held_out).square().mean() for made in (model.upscaler(small), bicubic)]
    assert errors[0] < 0.8 * errors[1]


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="base has no entry 'class', expected the class of a tokenizer"):
        SuperResolution(**SIZES)
    with pytest.raises(ValueError, match="base is a LevelAR, expected a tokenizer of square images"):
        SuperResolution(base={"class": "LevelAR"}, **SIZES)
    with pytest.raises(ValueError, match="base is a PyramidTokenizer, expected a tokenizer of square images"):
        make(base={"class": "PyramidTokenizer", **BASE, "image_width": 24})
    with pytest.raises(ValueError, match="image_size is 48, expected 32, 2 times the base's 16"):
        make(image_size=48)
    with pytest.raises(ValueError, match=r"images have shape \(2, 3, 16, 16\), expected \(b, 3, 32, 32\)"):
        make().encode(images(16))
