from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hiergen.data.images.pixels import to_pictures
from hiergen.data.images.windows import Windows
from hiergen.demo.clips import Film, embedded_clips
from hiergen.demo.inputs import choose_clip, examples_of
from hiergen.demo.library import ModelNotes
from hiergen.demo.pictures import digit_examples
from hiergen.demo.stage import as_uri
from hiergen.demo.tabs.reconstruct import (
    describe,
    draw_details,
    draw_reconstruction,
    reconstruct,
    usual_psnr,
    warn_of_unlike,
)
from hiergen.pipelines.prefixes import list_prefixes


def test_every_prefix_is_shown_with_its_bits_and_its_quality(library) -> None:
    tokenizer = library.get("one-dimensional").tokenizer
    image = digit_examples(32)[0][3:4]
    result = reconstruct(tokenizer, image)
    # Tokens of 512 ids: nine bits each.
    assert [(step.name, str(step.prefix)) for step in result.steps] == [
        ("1 level", "1 token, 9 bits"),
        ("2 levels", "2 tokens, 18 bits"),
        ("3 levels", "4 tokens, 36 bits"),
        ("4 levels", "8 tokens, 72 bits"),
        ("5 levels", "16 tokens, 144 bits"),
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
        f"level {k}: {n} token{'s' * (n > 1)}" for k, n in enumerate((1, 1, 2, 4, 8), start=1)
    ]
    assert "| 5 | 16 tokens, 144 bits | " in describe(result)
    assert result.steps[0].caption.startswith("1 token, 9 bits, ")


def test_scales_have_the_sizes_that_evaluations_print(library) -> None:
    tokenizer = library.get("two-dimensional").tokenizer
    result = reconstruct(tokenizer, digit_examples(32)[0][:1])
    assert result.unit == "scales"
    assert [step.prefix for step in result.steps] == list_prefixes(tokenizer)
    assert str(result.steps[-1].prefix) == "21 tokens, 128 numbers"
    assert result.steps[0].name == "1 scale"
    assert len(result.codes) == 1
    assert "equal colors: alike vectors" in draw_details(result)


def test_a_picture_unlike_the_data_is_said_to_be(library) -> None:
    entry = library.get("one-dimensional")
    images, _ = examples_of(entry)
    result = reconstruct(entry.tokenizer, images[:1])
    assert warn_of_unlike(entry, result) == ""
    (far,) = (dataclasses.replace(step, psnr_db=usual_psnr(entry) - 3.1) for step in result.steps[-1:])
    said = warn_of_unlike(entry, dataclasses.replace(result, steps=(far,)))
    assert said.startswith("This picture is unlike what the model knows: ")
    assert said.endswith(" or more. Random weights.")


def test_the_stage_shows_the_picture_beside_every_prefix(library) -> None:
    result = reconstruct(library.get("one-dimensional").tokenizer, digit_examples(32)[0][:1])
    stage = draw_reconstruction(result, line="<i>")
    assert stage.count(as_uri(result.source)) == 5
    assert all(as_uri(step.picture) in stage for step in result.steps)
    assert "&lt;i&gt;" in stage
    assert 'alt=""' not in draw_details(result)


def test_the_tokens_of_all_windows_of_a_picture_are_counted(library) -> None:
    tokenizer = library.get("two-dimensional").tokenizer
    image = torch.rand(1, 3, 40, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = reconstruct(tokenizer, image, windows=Windows(size=32, overlap=8))
    # Two rows of three windows.
    assert str(result.steps[-1].prefix) == "126 tokens, 768 numbers"
    assert result.source.size == result.steps[-1].picture.size == (72, 40)
    assert result.codes == ()
    assert "The tokens" not in draw_details(result)


def test_a_clip_from_more_and_more_components_beside_the_clip(library) -> None:
    entry = library.get("clips")
    clip, told = choose_clip(entry, None, 2, max_pixels=1)
    assert told == ""
    assert torch.equal(clip[0], embedded_clips("digits", 8, 48)[2])
    result = reconstruct(entry.tokenizer, clip)
    assert [step.prefix.count for step in result.steps] == [1, 2, 4, 8, 16, 24]
    assert result.steps[-1].caption.startswith("128 tokens, 3,072 numbers, ")
    assert result.steps[2].name == "4 components"
    assert [step.news for step in result.steps[:3]] == ["+ component 1", "+ component 2", "+ components 3 to 4"]
    with torch.no_grad():
        whole = entry.tokenizer.decode(entry.tokenizer.encode(clip)).clamp(-1, 1)
    assert result.steps[-1].psnr_db == pytest.approx(
        float(-10 * ((whole - clip) / 2).square().mean().log10()), abs=1e-3
    )
    assert result.source == Film.of(clip[0])
    assert result.steps[-1].picture == Film.of(whole[0])
    stage = draw_reconstruction(result, line=told)
    assert stage.count("<figure>") == 6
    assert as_uri(Film.of(clip[0]).beside(Film.of(whole[0])).encoded()) in stage
    assert as_uri(Film.of(whole[0]).encoded()) in stage
    assert "<figcaption><span>the clip</span><span>from 24 components</span></figcaption>" in stage
    details = draw_details(result)
    assert "What more components added (grey: nothing)" in details
    assert "+ components 17 to 24" in details
    assert "| 24 | 128 tokens, 3,072 numbers | " in describe(result)


def test_a_clip_is_called_unlike_where_the_data_are_known(library) -> None:
    entry = library.get("clips")
    clip = torch.rand(1, 3, 8, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = reconstruct(entry.tokenizer, clip)
    far = dataclasses.replace(result, steps=(dataclasses.replace(result.steps[-1], psnr_db=-9.0),))
    assert warn_of_unlike(entry, far) == ""
    known = dataclasses.replace(entry, notes=ModelNotes(about="Random weights.", clips="digits"))
    assert warn_of_unlike(known, far).startswith("This clip is unlike what the model knows: -9.0 dB")
    own = reconstruct(known.tokenizer, embedded_clips("digits", 8, 48)[:1])
    assert warn_of_unlike(known, own) == ""
    with pytest.raises(ValueError, match="example is 10, expected 0 to 9"):
        choose_clip(entry, None, 10, max_pixels=1)
