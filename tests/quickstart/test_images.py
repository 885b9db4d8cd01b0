from __future__ import annotations

import json
import os

import pytest
from PIL import Image

import hiergen
from hiergen.quickstart import images as module
from hiergen.quickstart.images import QuickstartSettings, run_quickstart
from hiergen.quickstart.report import markdown_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run so short that nothing is learned: what is tested is that every number is measured and every file is there."""
    out = tmp_path_factory.mktemp("quickstart")
    settings = QuickstartSettings(out=str(out), samples_seen=64, num_generated=80)
    return out, settings, run_quickstart(settings)


def test_everything_that_is_promised_is_written(finished) -> None:
    out, _, report = finished
    for name in ("reconstruction.png", "samples.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (out / "report.md").read_text() == markdown_report(report)
    pipe = hiergen.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe([1, 2]).images) == 2
    assert not [name for name in os.listdir(out) if name.startswith((".tmp", ".del"))]


def test_an_untrained_model_gets_a_bad_report(finished) -> None:
    """The judges can fail: after two steps the generated digits are not recognized, the real ones are."""
    _, _, report = finished
    judge = report["classifier"]
    assert judge["real_test_accuracy"] > 0.95
    assert judge["generated_agreement"] < 0.5
    assert judge["reconstruction_accuracy"] < 0.5
    yardstick = report["generation"]["real_test_against_train"]["frechet_distance"]
    assert report["generation"]["gfid"]["frechet_distance"] > 10 * yardstick


def test_running_again_trains_nothing_and_repeats_the_report(finished) -> None:
    _, settings, report = finished
    again = run_quickstart(settings)
    for name in ("reconstruction", "codebook", "generation", "classifier", "nearest_train_image"):
        assert again[name] == report[name], name


def test_a_stopped_run_keeps_the_time_it_spent(tmp_path) -> None:
    times = module._Times(tmp_path / "times.json")
    with pytest.raises(KeyboardInterrupt), times.stage("train"):
        raise KeyboardInterrupt
    before = module._Times(tmp_path / "times.json").seconds
    assert list(before) == ["train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_seen": 10}, "samples_seen is 10, expected at least 64"),
        ({"num_generated": 85}, "num_generated is 85, expected a multiple of 10"),
        ({"tokenizer": "restok-tin"}, "unknown preset 'restok-tin'; did you mean"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        QuickstartSettings(**changes)


def test_an_unwritable_folder_is_refused_before_anything_is_trained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        run_quickstart(QuickstartSettings(out=str(tmp_path / "file" / "out")))
