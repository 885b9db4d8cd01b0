from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from PIL import Image

from hiergen.demo.inputs import choose_image, choose_view
from hiergen.demo.library import ModelNotes
from hiergen.demo.pictures import digit_examples, shape_views


def test_an_upload_goes_before_the_example(library) -> None:
    entry = library.get("one-dimensional")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 255, 255)).save(buffer, "PNG")
    assert torch.equal(choose_image(entry, buffer.getvalue(), 3, max_pixels=1_600), torch.ones(1, 3, 32, 32))
    assert torch.equal(choose_image(entry, None, 3, max_pixels=1)[0], digit_examples(32)[0][3])


def test_a_picture_for_windows_keeps_its_shape_and_no_side_is_too_long(library) -> None:
    entry = dataclasses.replace(library.get("two-dimensional"), notes=ModelNotes(whole=True))
    for given, expected in (((90, 40), (40, 90)), ((1024, 300), (150, 512)), ((20, 10), (10, 20))):
        buffer = io.BytesIO()
        Image.new("RGB", given, "white").save(buffer, "PNG")
        image = choose_image(entry, buffer.getvalue(), 0, max_pixels=1_000_000)
        assert torch.equal(image, torch.ones(1, 3, *expected))
        assert choose_image(entry, buffer.getvalue(), 0, max_pixels=1_000_000, size=32).shape == (1, 3, 32, 32)
    assert choose_image(entry, None, 3, max_pixels=1).shape == (1, 3, 256, 256)


def test_a_view_is_the_upload_or_else_the_example() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10), (0, 0, 255)).save(buffer, "PNG")
    assert choose_view(buffer.getvalue(), 3, max_pixels=100).getcolors() == [(100, (0, 0, 255))]
    assert choose_view(None, 3, max_pixels=1) == shape_views()[3]
    with pytest.raises(ValueError, match="example is 8, expected 0 to 7"):
        choose_view(None, 8, max_pixels=1)


@pytest.mark.parametrize("example", [-1, 10])
def test_an_example_that_is_not_there(library, example) -> None:
    with pytest.raises(ValueError, match=f"example is {example}, expected 0 to 9"):
        choose_image(library.get("one-dimensional"), None, example, max_pixels=1)
