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
    assert pipe._labels([3, 7], num_images_per_label=2).tolist() == [3, 3, 7, 7]
    assert pipe._labels(5, num_shapes_per_label=1).tolist() == [5]


def test_the_argument_that_is_wrong_is_named(pipe) -> None:
    with pytest.raises(ValueError, match="num_videos_per_label is 0, expected at least 1"):
        pipe._labels(5, num_videos_per_label=0)
    with pytest.raises(ValueError, match="class_labels is empty, expected at least one label"):
        pipe._labels([], num_videos_per_label=1)


def test_every_step_is_told_with_its_pyramid(pipe) -> None:
    assert pipe._report(None) is None
    told = []
    report = pipe._report(lambda *values: told.append(values))
    assert report is not None
    report(4, None)
    assert told == [(pipe, 4, {"images": None, "pyramid": None})]
