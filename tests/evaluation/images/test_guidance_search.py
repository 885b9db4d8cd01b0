from __future__ import annotations

import csv

import pytest
import torch

from hiergen.evaluation.images.guidance_search import SearchSettings, climb, rectangular_windows, search_guidance
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.registry import create


@pytest.fixture(scope="module")
def pipeline() -> ClassToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("restok-tiny", cnn_channels=8, encoder_depth=2, decoder_depth=1).eval()
    generator = create("har-tiny", depth=1).eval()
    # The output layer starts at zero, where guidance has nothing to scale.
    torch.nn.init.normal_(generator.head.weight)
    return ClassToImagePipeline(tokenizer=tokenizer, generator=generator)


def test_the_way_of_a_climb_by_hand() -> None:
    """Best so far, upper neighbor, lower neighbor, until both are known."""
    tried = []

    def score(scale: float) -> float:
        tried.append(scale)
        return (scale - 1.1) ** 2

    values = climb(score, start=2.0, step=0.5, minimum=1.0)
    # 2.5 is worse, 1.5 is better; its upper neighbor is known; 1.0 is better still, and nothing is below.
    assert tried == [2.0, 2.5, 1.5, 1.0]
    assert min(values, key=values.__getitem__) == 1.0
    tried.clear()
    climb(score, start=1.0, step=0.5, minimum=-9.0)
    assert tried == [1.0, 1.5, 0.5]
    # It stops in the valley it is in.
    assert min(climb(lambda x: min((x - 1) ** 2, (x - 9) ** 2 - 5), start=0.0, step=1.0, minimum=0.0)) == 0.0


def test_values_are_kept_and_a_stopped_search_continues(tmp_path, pipeline) -> None:
    table = tmp_path / "search.csv"
    settings = SearchSettings(start=1.5, step=0.5, num_images=4, batch_size=3)
    calls = []

    def measure(images: torch.Tensor, labels: torch.Tensor) -> float:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(images)
        assert labels.tolist() == [0, 1, 2, 3]
        return float(len(calls))

    with pytest.raises(KeyboardInterrupt):
        search_guidance(pipeline, measure, settings, table=table, metric="calls")
    assert not torch.equal(calls[0], calls[1])
    again = []

    def other(images: torch.Tensor, labels: torch.Tensor) -> float:
        again.append(images)
        return 9.0

    # Another batch size is the same search: every sample has draws of its own.
    smaller = SearchSettings(start=1.5, step=0.5, num_images=4, batch_size=2)
    points = search_guidance(pipeline, other, smaller, table=table, metric="calls")
    assert [(point.scale, point.value) for point in points] == [(1.5, 1.0), (2.0, 2.0), (1.0, 9.0)]
    assert len(again) == 1
    search_guidance(pipeline, other, settings, table=table, metric="calls")
    assert len(again) == 1
    search_guidance(pipeline, other, settings, table=table, metric="another")
    assert torch.equal(again[1], calls[0])
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert [row["scale"] for row in rows if row["metric"] == "calls"] == ["1.5", "2", "1"]
    assert len({row["search"] for row in rows}) == 2


def test_windows_are_searched_from_the_best_scale_so_far(tmp_path, pipeline) -> None:
    windows = ((0.0, 0.5), (0.5, 1.0))
    settings = SearchSettings(schedule="rectangular", start=1.5, step=0.5, windows=windows, num_images=2, batch_size=2)
    values = iter([5.0, 4.0, 6.0, 1.0, 2.0, 3.0])
    points = search_guidance(pipeline, lambda images, labels: next(values), settings, table=tmp_path / "a", metric="m")
    assert [(point.scale, point.window) for point in points] == [
        (2.0, windows[1]),
        (2.5, windows[1]),
        (1.5, windows[1]),
        (2.0, windows[0]),
        (1.5, windows[0]),
        (2.5, windows[0]),
    ]
    grid = rectangular_windows()
    assert (grid[0], grid[-1]) == ((0.1, 0.5), (0.8, 1.0))
    # 15 starts and 11 ends, less those that end at or before their start: starts 0.5 to 0.8.
    assert len(grid) == 15 * 11 - sum(range(1, 8))


def test_refusals(tmp_path, pipeline) -> None:
    for changes, message in (
        ({"step": 0.0}, "step is 0.0, expected above 0"),
        ({"start": 0.5}, "start is 0.5, expected at least minimum, 1.0"),
        ({"num_images": 0}, "num_images is 0 and batch_size 50, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            SearchSettings(**changes)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"has the columns \['a', 'b'\], expected search, metric"):
        search_guidance(pipeline, lambda a, b: 0.0, SearchSettings(), table=tmp_path / "t.csv", metric="m")
