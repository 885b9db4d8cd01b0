from __future__ import annotations

import pytest

from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pyramid import specs_to_json
from hiergen.registry import create


@pytest.fixture(scope="module")
def pipe() -> ClassToImagePipeline:
    tokenizer = create("restok-tiny").eval()
    generator = create("har-tiny", depth=1, level_specs=specs_to_json(tokenizer.specs)).eval()
    return ClassToImagePipeline(tokenizer=tokenizer, generator=generator)


def test_repeated_labels_are_next_to_each_other(pipe) -> None:
    labels, rng = pipe._condition([3, 7], 2, None, None, "pt")
    assert labels.tolist() == [3, 3, 7, 7]
    assert rng is None


def test_the_argument_that_is_wrong_is_named(pipe) -> None:
    with pytest.raises(ValueError, match="num_images_per_label is 0, expected at least 1"):
        pipe._condition(5, 0, None, None, "pt")
    with pytest.raises(ValueError, match="class_labels is empty, expected at least one label"):
        pipe._condition([], 1, None, None, "pt")
