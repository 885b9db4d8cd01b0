from __future__ import annotations

import math

import pytest
import torch

from hiergen.generators.level_ar.presets import PRESETS, doubling_specs
from hiergen.registry import create

# Published sizes, ResTok's table of generators: with HAR's 127 special embeddings, and without.
COUNTS = {
    "b": (98_403_072, 98_305_536),
    "l": (326_263_808, 326_133_760),
    "xl": (753_890_560, 753_728_000),
    "xxl": (1_386_001_920, 1_385_806_848),
    "xxxl": (3_851_409_920, 3_851_084_800),
}


# LlamaGen's own vocabulary and 1,001 rows of classes; the grid has no weights.
LLAMAGEN = {
    "b": 110_888_448,
    "l": 342_910_976,
    "xl": 774_699_520,
    "xxl": 1_410_972_672,
    "xxxl": 3_893_027_840,
    "3b": 3_096_659_200,
}


@pytest.mark.parametrize("size", LLAMAGEN)
def test_published_parameter_counts_of_llamagen(size: str) -> None:
    for tokens in (256, 576):
        with torch.device("meta"):
            model, tokenizer = create(f"llamagen-{size}-{tokens}"), create("vq-16", image_size=16 * math.isqrt(tokens))
        assert sum(parameter.numel() for parameter in model.parameters()) == LLAMAGEN[size]
        assert model.num_steps == tokens
        model.check_tokenizer(tokenizer.specs)


@pytest.mark.parametrize("tokens", [256, 1024])
def test_published_parameter_counts_of_llamagen_by_text(tokens: int) -> None:
    """What the class-conditional one of this size has, less its 1,001 classes, and two layers for texts."""
    with torch.device("meta"):
        model, tokenizer = create(f"llamagen-xl-text-{tokens}"), create("vq-16", image_size=16 * math.isqrt(tokens))
    count = LLAMAGEN["xl"] - 1001 * 1280 + 2048 * 1280 + 1280 * 1280
    assert sum(parameter.numel() for parameter in model.parameters()) == count == 777_678_080
    assert [tuple(buffer.shape) for buffer in model.buffers()] == [(120, 2048)]
    assert model.num_steps == tokens
    model.check_tokenizer(tokenizer.specs)


@pytest.mark.parametrize("size", COUNTS)
def test_published_parameter_counts(size: str) -> None:
    for name, count in zip((f"har-{size}", f"ar-{size}"), COUNTS[size], strict=True):
        with torch.device("meta"):
            model = create(name)
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        assert model.num_steps == (9 if name.startswith("har") else 128)
        assert [spec.num_tokens for spec in model.specs] == [1, 1, 2, 4, 8, 16, 32, 64]


def test_every_preset_is_counted_or_tiny() -> None:
    llamagen = {f"llamagen-{size}-{tokens}" for size in LLAMAGEN for tokens in (256, 576)}
    llamagen |= {f"llamagen-xl-text-{tokens}" for tokens in (256, 1024)}
    assert set(PRESETS) == {f"{kind}-{size}" for kind in ("har", "ar") for size in COUNTS} | {"har-tiny"} | llamagen
    tiny = create("har-tiny")
    assert tiny.generate(torch.tensor([9])).num_tokens == 16
    assert sum(parameter.numel() for parameter in tiny.parameters()) < 3_000_000


def test_doubling_specs() -> None:
    assert [spec.num_tokens for spec in doubling_specs(16, dim=8, vocab_size=512)] == [1, 1, 2, 4, 8]
    assert [spec.num_tokens for spec in doubling_specs(1, dim=8, vocab_size=512)] == [1]
    for wrong in (0, 12):
        with pytest.raises(ValueError, match=f"num_tokens is {wrong}, expected a power of two"):
            doubling_specs(wrong, dim=8, vocab_size=512)
