from __future__ import annotations

import pytest
import torch

from hiergen.convert.var import _generator_names, generator_to_official
from hiergen.generators.next_scale.presets import LADDERS, PRESETS
from hiergen.registry import create
from hiergen.tokenizers.multiscale_vq.presets import LADDER_512
from hiergen.training.optim import decays

#: Published parameters, tensors in the official file, and parameters of one block.
COUNTS = {
    "var-d16": (310_283_520, 220, 18_888_720),
    "var-d20": (600_917_136, 272, 29_509_140),
    "var-d24": (1_033_399_360, 324, 42_488_856),
    "var-d30": (2_010_020_356, 402, 66_382_110),
    "var-d36-512": (2_353_893_904, 446, 63_733_284),
}


def count(module: torch.nn.Module, *, trained: bool = True) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad is trained)


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
        tokenizer = create("multiscale-vq-2240" if name.endswith("512") else "multiscale-vq-680")
    assert (count(model), len(generator_to_official(model)), count(model.blocks[0])) == COUNTS[name]
    assert count(model, trained=False) == count(tokenizer.quantizer) == 168_064
    model.check_tokenizer(tokenizer.specs)
    assert model.quantizer.filter_of == tokenizer.quantizer.filter_of
    assert model.blocks[-1].drop_path == pytest.approx(0.1 * len(model.blocks) / 24)
    assert model.blocks[0].drop_path == 0


def test_other_published_counts() -> None:
    with torch.device("meta"):
        assert count(create("var-d16", shares_modulation=True)) == 215_917_824
        assert count(create("var-d16", use_qk_norm=False)) == 310_283_264
        assert count(create("multiscale-vq-680", num_filters=0)) == 109_003_843


@pytest.mark.parametrize("shares_modulation", [False, True])
def test_all_but_the_classes_are_decayed_as_in_the_official_program(shares_modulation: bool) -> None:
    with torch.device("meta"):
        model = create("var-tiny", depth=1, shares_modulation=shares_modulation)
    official, found = generator_to_official(model), {}
    shapes = {name: [side for side in value.shape if side > 1] for name, value in official.items()}
    words = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul")
    names = _generator_names(model, "")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            theirs = names[name]
            is_exempt = len(shapes[theirs]) < 2 or theirs.endswith("bias") or any(word in theirs for word in words)
            found[name] = (decays(name, parameter), not is_exempt)
    assert [name for name, (ours, theirs) in found.items() if ours is not theirs] == ["class_embedding.weight"]
    assert sum(ours for ours, _ in found.values()) == 8


def test_every_preset_is_counted_or_tiny() -> None:
    assert set(PRESETS) == {*COUNTS, "var-tiny"}
    assert list(LADDERS[512]) == LADDER_512
    tiny, tokenizer = create("var-tiny"), create("multiscale-vq-tiny")
    tiny.check_tokenizer(tokenizer.specs)
    tiny.take_quantizer(tokenizer.quantizer)
    assert count(tiny) + count(tokenizer) < 3_000_000
    assert tiny.generate(torch.tensor([9])).num_tokens == 130
