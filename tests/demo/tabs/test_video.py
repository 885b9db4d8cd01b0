from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from hiergen.demo.tabs.video import (
    VideoRequest,
    describe_clips,
    describe_experiment,
    draw_clips,
    generate_clips,
    make_ready,
    measure_lengths,
)


def test_the_dense_clip_comes_first_and_both_start_from_the_same_noise(library) -> None:
    entry = library.get("clips")
    progress = list(generate_clips(entry, VideoRequest(label=2, density=0.3, seed=4), seconds=60.0))
    counts = [len(clips) for _, clips in progress]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    dense, sparse = progress[-1][1]
    expected = entry.model(
        2,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
        **{**entry.notes.sampling, "guidance_scale": 2.0},
    ).frames[0]
    assert torch.equal(dense.video, expected)
    assert dense.density == 1
    assert dense.plan is None
    assert sparse.density == pytest.approx(0.3, abs=0.15)
    assert sparse.plan is not None
    assert not torch.equal(sparse.video, dense.video)
    # The model is left as it was.
    assert entry.generator.config["attention"] is None
    ratio = float(-10 * ((sparse.video - dense.video) / 2).square().mean().log10())
    table = describe_clips((dense, sparse))
    assert f"| {ratio:.1f} |" in table
    assert "| dense | 100% |" in table
    assert table.endswith("too short for it.") or "Sparse attention pays here" in table


def test_clips_play_in_step_in_one_picture(library) -> None:
    entry = library.get("clips")
    *_, (_, clips) = generate_clips(entry, VideoRequest(label=2, density=0.3, seed=4), seconds=60.0)
    one, both = (Image.open(io.BytesIO(draw_clips(part))) for part in (clips[:1], clips))
    # Each under its name, and enlarged: 48 pixels six times, 24 for the name, 8 between and around.
    assert one.size == (48, 48)
    assert both.size == (3 * 8 + 2 * 6 * 48, 24 + 6 * 48 + 8)
    assert both.n_frames >= one.n_frames > 1
    frame = both.convert("L")
    names = [frame.crop((left, 0, left + 288, 24)) for left in (8, 304)]
    assert all(name.getextrema()[0] < 128 for name in names)
    assert names[0].tobytes() != names[1].tobytes()


def test_without_a_density_there_is_one_clip(library) -> None:
    entry = library.get("clips")
    *_, (steps, clips) = generate_clips(entry, VideoRequest(label=2, density=None, seed=4), seconds=60.0)
    assert (steps, len(clips)) == (2, 1)
    first, second = make_ready(entry, seconds=60.0, limit=60.0)[:2]
    assert (first["title"], second["line"]) == ("class 0", "class 1, seed 1.")
    assert "data:image/gif" in first["stage"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 0.0}, r"density is 0\.0, expected 0\.05 to 0\.9"),
        ({"density": math.nan}, "density is nan"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_have_bounds_whoever_sends_them(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        VideoRequest(label=0, **values)


def test_a_class_that_is_not_there(library) -> None:
    with pytest.raises(ValueError, match="label is 10, expected 0 to 9"):
        list(generate_clips(library.get("clips"), VideoRequest(label=10), seconds=60.0))


def test_when_it_pays_is_measured_once_by_length_and_density(monkeypatch) -> None:
    asked = []

    def measure(num_tokens, config):
        asked.append((num_tokens, config.query_block))
        return (0.25, 0.5) if num_tokens < 2000 else (2.0, 0.5)

    monkeypatch.setattr("hiergen.demo.tabs.video.measure_pay", measure)
    measure_lengths.cache_clear()
    table = measure_lengths(128, 0.3)
    assert measure_lengths(128, 0.3) == table
    assert asked == [(128, 32), (1024, 128), (4096, 128)]
    assert "<td>128</td><td>250.0</td><td>500.0</td><td>2.00</td>" in table
    assert "<td>4,096</td><td>2000.0</td><td>500.0</td><td>0.25</td>" in table
    assert "at density 0.3" in table
    measure_lengths.cache_clear()


def test_the_experiment_says_whether_it_will_pay(library) -> None:
    """The clips of the tests are 128 tokens."""
    text = describe_experiment(library.get("clips"), 0.3)
    assert text.startswith("Sparse attention reads")
    assert "A clip is 128 tokens, so few that dense attention is the default: on CPUs" in text
