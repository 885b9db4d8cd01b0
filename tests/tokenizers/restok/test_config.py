from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hiergen.registry import create
from hiergen.tokenizers.restok.config import ResTokConfig
from hiergen.tokenizers.restok.model import ResTok


@pytest.fixture(scope="module")
def published() -> ResTokConfig:
    return ResTokConfig()


def test_published_levels(published: ResTokConfig) -> None:
    assert published.level_sizes == (1, 1, 2, 4, 8, 16, 32, 64)
    assert published.prefixes == (1, 2, 4, 8, 16, 32, 64, 128)
    assert published.allowed_prefixes == (4, 8, 16, 32, 64, 128)
    assert published.pooling_grids == ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
    assert published.grid_size == 16


@pytest.mark.parametrize(
    ("depth", "levels", "blocks"), [(24, 4, (5, 11, 17)), (12, 4, (2, 5, 8)), (6, 4, (0, 2, 3)), (6, 1, ())]
)
def test_merge_blocks(published: ResTokConfig, depth: int, levels: int, blocks: tuple[int, ...]) -> None:
    assert dataclasses.replace(published, encoder_depth=depth, num_image_levels=levels).merge_blocks == blocks


@pytest.mark.parametrize(
    ("size", "levels", "merge", "grids"),
    [
        (256, 4, "even", ((16, 16), (16, 8), (16, 4), (16, 2))),
        (256, 4, "average", ((16, 16), (8, 8), (4, 4), (2, 2))),
        (96, 2, "average", ((6, 6), (3, 3))),
        (16, 1, "even", ((1, 1),)),
    ],
)
def test_image_grids(
    published: ResTokConfig, size: int, levels: int, merge: Any, grids: tuple[tuple[int, int], ...]
) -> None:
    assert dataclasses.replace(published, image_size=size, num_image_levels=levels, merge=merge).image_grids == grids


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"image_size": 250}, "image_size is 250, expected a multiple of the stride, 16"),
        ({"num_latent_tokens": 100}, "num_latent_tokens is 100, expected a power of two"),
        ({"min_tokens": 3}, r"min_tokens is 3, expected one of the prefix lengths \(1, 2, 4, 8, 16, 32, 64, 128\)"),
        ({"encoder_heads": 3}, "encoder_dim is 1024 with 3 heads, expected heads of a multiple of 4 channels"),
        ({"decoder_dim": 32}, "decoder_dim is 32 with 16 heads, expected heads of a multiple of 4 channels"),
        ({"decoder_depth": 0}, "decoder_depth is 0, expected at least 1"),
        ({"num_image_levels": 0}, "num_image_levels is 0, expected at least 1"),
        ({"encoder_depth": 3}, "encoder_depth is 3, expected at least num_image_levels, 4"),
        ({"image_size": 96}, "num_image_levels is 4, but a grid of 6x6 can be merged only 1 times with merge='even'"),
        ({"drop_prob": 2.0}, r"drop_prob is 2\.0, expected 0 to 1"),
        ({"cnn_groups": 48}, "groups is 48, expected a divisor of the 128 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(published: ResTokConfig, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(published, **overrides)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projection": "flat"}, r"ResTok\.projection is 'flat', expected one of 'reinterpreted', 'per_token'"),
        ({"merge": "max"}, r"ResTok\.merge is 'max', expected one of 'even', 'average'"),
        ({"encoder_depth": 2.5}, r"ResTok\.encoder_depth is 2\.5, expected int"),
        ({"mergee": "even"}, "ResTok has no field 'mergee'; did you mean merge"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResTok(**options)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("restok-ss-128", 92_504_267),
        ("restok-sb-128", 158_739_403),
        ("restok-bb-128", 224_973_515),
        ("restok-sl-128", 376_100_043),
        ("restok-bl-128", 442_334_155),
        ("restok-l-128", 659_693_771),
    ],
)
def test_presets_have_the_measured_numbers_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
