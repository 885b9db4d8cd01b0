from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from PIL import Image

import hiergen
from hiergen.cli.quickstart import main
from hiergen.data.videos.decoding import read_frames
from hiergen.metrics import clip_classifiers
from hiergen.quickstart.settings import MOVING, VideoQuickstartSettings
from hiergen.quickstart.videos import run as videos
from hiergen.quickstart.videos import samples as video_samples
from hiergen.quickstart.videos.report import video_markdown
from hiergen.quickstart.videos.run import run_video_quickstart

#: One step without guidance, and an extractor of few clips: no time for anything to be learned.
FEW = {"num_steps": 1, "solver": "euler", "timestep_shift": 1.0, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run so short that nothing is learned: what is tested is that every number is measured and every file is there.

    Three steps: blocks start as the identity, so after the first one attention still changes nothing.
    """
    out = tmp_path_factory.mktemp("quickstart")
    settings = VideoQuickstartSettings(
        out=str(out), num_clips=100, num_test=10, samples_seen=12, num_generated=10, densities=(0.5,)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MOVING, "digits", dataclasses.replace(MOVING["digits"], sampling=FEW))
        patch.setattr(clip_classifiers, "EXTRACTOR_CLIPS", 20)
        yield out, settings, run_video_quickstart(settings)


def test_everything_that_is_promised_is_written(finished) -> None:
    out, _, report = finished
    for name in ("contact_sheet.png", "curves.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    for name in ("samples.gif", "samples.mp4"):
        assert read_frames(out / name, size=32).shape[1] == 32
    with Image.open(out / "attention.gif") as both:
        # Five digits per row, two rows, twice as large, under names.
        assert both.size == (3 * 8 + 2 * 2 * (5 * 26 + 2), 24 + 2 * (2 * 26 + 2) + 8)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (out / "report.md").read_text() == video_markdown(report)
    assert "A clip is 128 tokens, so few that dense attention is the default: on CPUs" in video_markdown(report)
    pipe = hiergen.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert len(pipe(3, num_steps=1).frames[0]) == 32
    assert not [name for name in os.listdir(out) if name.startswith((".tmp", ".del"))]


def test_an_untrained_model_gets_a_bad_report_and_real_clips_a_good_one(finished) -> None:
    _, _, report = finished
    sets = report["sets"]
    assert list(sets) == ["real test", "rebuilt test", "dense", "psa-0.5"]
    assert sets["real test"]["clips_agree"] > 0.8
    assert sets["rebuilt test"]["clips_agree"] > 0.8
    assert sets["dense"]["clips_agree"] < 0.5
    assert sets["dense"]["frechet"]["distance"] > 3 * sets["real test"]["frechet"]["distance"]
    assert {entry["frechet"]["extractor"] for entry in sets.values()} == {"digit-clips-cnn-32"}
    assert report["tokenizer"]["psnr_db"] > 25
    dense, sparse = report["sparse_against_dense"]
    assert dense["density"] == 1.0
    assert "psnr_db" not in dense
    assert sparse["density"] == pytest.approx(0.44, abs=0.03)
    assert sparse["psnr_db"] > 20


def test_running_again_trains_and_draws_nothing_and_repeats_the_report(finished, monkeypatch) -> None:
    out, settings, report = finished
    # What the other tests read is the report of the first run.
    kept = {path: path.read_bytes() for path in out.glob("report.*")}

    def fail(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(video_samples, "_draw", fail)
    again = run_video_quickstart(settings)
    for path, data in kept.items():
        path.write_bytes(data)
    for name in ("sets", "sparse_against_dense", "tokenizer", "extractor"):
        assert again[name] == report[name], name
    # Other noise is another set of samples.
    other = dataclasses.replace(MOVING["digits"], sampling={**FEW, "guidance_scale": 2.0})
    monkeypatch.setitem(MOVING, "digits", other)
    with pytest.raises(AssertionError, match="drawn again"):
        run_video_quickstart(settings)


def test_sampling_leaves_the_attention_as_it_was(finished, tmp_path) -> None:
    out, settings, _ = finished
    pipe = hiergen.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    sparse = videos.attention_kinds(settings)["psa-0.5"]
    pipe.generator.set_attention(sparse)
    drawn = [
        video_samples.draw_samples(pipe, kind, [3], tmp_path / name, seed=0, sampling=FEW)
        for name, kind in (("dense", None), ("sparse", sparse))
    ]
    assert pipe.generator.config["attention"]["query_block"] == 32
    assert [round(kind.density, 1) for kind in drawn] == [1.0, 0.4]
    assert not torch.equal(drawn[0].videos, drawn[1].videos)


def test_emoji_are_judged_in_color_and_named(tmp_path, monkeypatch) -> None:
    """Everything of the run on digits, but clips, tokenizer, generator, judge and extractor are those of the emoji."""
    usual = VideoQuickstartSettings.usual("emoji")
    assert (usual.data, usual.tokenizer, usual.generator) == ("emoji", "patches-emoji-48", "flow-video-emoji-48")
    assert VideoQuickstartSettings.usual("none") == VideoQuickstartSettings()
    asked: list[VideoQuickstartSettings] = []
    with monkeypatch.context() as patch:
        patch.setattr(videos, "run_video_quickstart", asked.append)
        main(["video", "--data", "emoji", "--seed", "3"])
        main(["video"])
    assert asked == [dataclasses.replace(usual, seed=3), VideoQuickstartSettings()]
    monkeypatch.setitem(MOVING, "emoji", dataclasses.replace(MOVING["emoji"], sampling=FEW))
    monkeypatch.setattr(clip_classifiers, "EXTRACTOR_CLIPS", 20)
    report = run_video_quickstart(
        dataclasses.replace(
            usual, out=str(tmp_path), num_clips=30, num_test=10, num_generated=10, samples_seen=4, densities=(0.5,)
        )
    )
    assert report["sets"]["real test"]["clips_agree"] > 0.5
    assert report["sets"]["dense"]["clips_agree"] < 0.5
    assert {entry["frechet"]["extractor"] for entry in report["sets"].values()} == {"emoji-clips-cnn-32"}
    page = video_markdown(report)
    assert "Do the clips show the kind of emoji that was asked for" in page
    assert "8 x 8 pixels in color around what is not white" in page
    assert "A clip is 144 tokens" in page
    assert "Quickstart on moving emoji drawn by Google" in page


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clips": 15}, "num_clips is 15, expected a multiple of 10"),
        ({"samples_seen": 0}, "samples_seen is 0, expected at least 1"),
        ({"densities": ()}, r"densities are \(\), expected at least one"),
        ({"densities": (0.2, 1.0)}, "each between 0 and 1"),
        ({"tokenizer": "hieratok-tiny"}, "preset 'hieratok-tiny' is a HieraTok, expected a PatchComponents"),
        ({"generator": "har-tiny"}, "preset 'har-tiny' is a LevelAR, expected a FlowTransformer"),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        VideoQuickstartSettings(**changes)


def test_an_unwritable_folder_is_refused_before_anything_is_trained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        run_video_quickstart(VideoQuickstartSettings(out=str(tmp_path / "file" / "out")))
