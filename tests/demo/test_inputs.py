from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from hiergen.demo.inputs import choose_image
from hiergen.demo.pictures import digit_examples


def test_an_upload_goes_before_the_example(library) -> None:
    tokenizer = library.get("one-dimensional").tokenizer
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), (255, 255, 255)).save(buffer, "PNG")
    assert torch.equal(choose_image(tokenizer, buffer.getvalue(), 3, max_pixels=1_600), torch.ones(1, 3, 32, 32))
    assert torch.equal(choose_image(tokenizer, None, 3, max_pixels=1)[0], digit_examples(32)[0][3])


@pytest.mark.parametrize("example", [-1, 10])
def test_an_example_that_is_not_there(library, example) -> None:
    with pytest.raises(ValueError, match=f"example is {example}, expected 0 to 9"):
        choose_image(library.get("one-dimensional").tokenizer, None, example, max_pixels=1)
