from __future__ import annotations

import numpy as np
import pytest
import torch

from hiergen.data.images.pixels import to_pictures
from hiergen.demo.pictures import digit_examples
from hiergen.demo.reconstruct import describe, information, reconstruct
from hiergen.pyramid import LevelSpec


def test_every_prefix_is_shown_with_its_bits_and_its_quality(library) -> None:
    tokenizer = library.get("one-dimensional").tokenizer
    image = digit_examples(32)[0][3:4]
    result = reconstruct(tokenizer, image)
    # Tokens of 512 ids: nine bits each.
    assert [(step.tokens, step.size) for step in result.steps] == [
        (1, "9 bits"),
        (2, "18 bits"),
        (4, "36 bits"),
        (8, "72 bits"),
        (16, "144 bits"),
    ]
    assert result.unit == "levels"
    with torch.no_grad():
        whole = tokenizer.decode(tokenizer.encode(image)).clamp(-1, 1)
        first = tokenizer.decode(tokenizer.encode(image).prefix(1)).clamp(-1, 1)
    assert result.steps[-1].picture == to_pictures(whole)[0]
    assert result.steps[0].added == to_pictures(first)[0]
    # In [0, 1], as the ratio is usually written.
    error = float((((whole - image) / 2) ** 2).mean())
    assert result.steps[-1].psnr_db == pytest.approx(-10 * np.log10(error), abs=1e-3)
    assert [caption for _, caption in result.codes] == [
        f"level {k}: {n} token{'s' * (n > 1)}" for k, n in enumerate((1, 1, 2, 4, 8))
    ]
    assert "| 5 | 16 | 144 bits | " in describe(result)
    assert result.steps[0].caption.startswith("1 token, 9 bits, ")


def test_scales_of_a_decoder_read_all_the_tokens(library) -> None:
    result = reconstruct(library.get("two-dimensional").tokenizer, digit_examples(32)[0][:1])
    assert result.unit == "scales"
    assert {step.size for step in result.steps} == {"128 numbers"}
    assert len(result.codes) == 1


def test_what_levels_hold() -> None:
    ids = (LevelSpec(num_tokens=3, vocab_size=8), LevelSpec(num_tokens=2, vocab_size=1024))
    assert information(ids) == "29 bits"
    assert information((LevelSpec(num_tokens=4, dim=3), LevelSpec(num_tokens=2, dim=5))) == "22 numbers"
