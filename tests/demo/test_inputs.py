from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from hiergen.demo.inputs import choose_image, choose_view
from hiergen.demo.pictures import digit_examples, shape_views


def test_an_upload_goes_before_the_example(library) -> None:
    entry = library.get("one-dimensional")
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 255, 255)).save(buffer, "PNG")
    assert torch.equal(choose_image(entry, buffer.getvalue(), 3, max_pixels=1_600), torch.ones(1, 3, 32, 32))
    assert torch.equal(choose_image(entry, None, 3, max_pixels=1)[0], digit_examples(32)[0][3])


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
