from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from PIL import Image

import hiergen
from hiergen.cli.quickstart import _named_data
from hiergen.quickstart.images.report import markdown_report
from hiergen.quickstart.images.run import run_quickstart
from hiergen.quickstart.images.trainings import generator_config, tokenizer_config
from hiergen.quickstart.settings import FAMILIES, QuickstartSettings


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
    out, settings, report = finished
    # What the other tests read is the report of the first run.
    kept = {path: path.read_bytes() for path in out.glob("report.*")}
    again = run_quickstart(settings)
    for path, data in kept.items():
        path.write_bytes(data)
    for name in ("reconstruction", "codebook", "generation", "classifier", "nearest_train_image"):
        assert again[name] == report[name], name


#: So few steps that sampling takes no time.
FEW = {"FlowTransformer": {"num_steps": 3}, "MaskedAR": {"num_steps": 3, "head_steps": 3}}


@pytest.mark.parametrize(("generator", "model"), [("flow-tiny", "FlowTransformer"), ("mar-tiny", "MaskedAR")])
def test_continuous_tokens_get_the_same_report(generator, model, tmp_path, monkeypatch) -> None:
    quick = dataclasses.replace(FAMILIES[model], sampling={**FAMILIES[model].sampling, **FEW[model]})
    monkeypatch.setitem(FAMILIES, model, quick)
    settings = QuickstartSettings(
        out=str(tmp_path), samples_seen=64, num_generated=80, tokenizer="hieratok-tiny", generator=generator
    )
    report = run_quickstart(settings)
    page = (tmp_path / "report.md").read_text()
    assert report["samples_seen"]["tokenizer"] == 64
    assert report["codebook"] == {"what": "continuous tokens: no codebook"}
    assert "## Reconstruction, scale by scale" in page
    assert "## Latents" in page
    assert [(row["scales"], row["tokens"]) for row in report["reconstruction"]["psnr_by_scales"]] == [
        (1, 1),
        (2, 5),
        (3, 21),
    ]
    for name in ("reconstruction.png", "samples.png", "curves.png"):
        assert (tmp_path / name).is_file()
    config = json.loads((tmp_path / "generator" / "model" / "config.json").read_text())
    channels = report["latents"]["by_channel"]
    assert config["latent_mean"] == pytest.approx([channel["mean"] for channel in channels], abs=1e-9)
    # The generator's deviation has n - 1 in its denominator.
    assert config["latent_std"] == pytest.approx([channel["std"] for channel in channels], rel=1e-4)
    _check_the_saved_pipeline(tmp_path / "pipeline", report["sampling"])


def _check_the_saved_pipeline(folder, sampling) -> None:
    """It draws the same images again, and shows each step what is complete: with one level, the result after the last."""
    pipe = hiergen.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    shown = []
    images = pipe(
        [1, 2],
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback_on_step_end=lambda _, step, time, values: shown.append(values["images"]),
        callback_on_step_end_tensor_inputs=["images"],
        **sampling,
    ).images
    again = hiergen.from_pretrained(folder)(
        [1, 2], generator=torch.Generator().manual_seed(0), output_type="pt", **sampling
    )
    torch.testing.assert_close(images, again.images, rtol=1e-4, atol=1e-5)
    assert [picture is None for picture in shown] == [True, True, False]
    torch.testing.assert_close(shown[-1], images)


def test_a_generator_that_trains_a_level_a_step_sees_twice_the_samples() -> None:
    on_one_map = QuickstartSettings(tokenizer="hieratok-tiny", generator="mar-tiny", samples_seen=1_000)
    by_level = QuickstartSettings(tokenizer="hieratok-tiny-levels", generator="mar-tiny-levels", samples_seen=1_000)
    assert [generator_config(settings).samples for settings in (on_one_map, by_level)] == [1_500, 3_000]
    assert tokenizer_config(on_one_map).samples == tokenizer_config(by_level).samples == 1_000


def test_level_by_level_generation_gets_the_same_report(tmp_path, monkeypatch) -> None:
    quick = dataclasses.replace(FAMILIES["MaskedAR"], sampling={**FAMILIES["MaskedAR"].sampling, **FEW["MaskedAR"]})
    monkeypatch.setitem(FAMILIES, "MaskedAR", quick)
    settings = QuickstartSettings(
        out=str(tmp_path),
        samples_seen=64,
        num_generated=80,
        tokenizer="hieratok-tiny-levels",
        generator="mar-tiny-levels",
    )
    report = run_quickstart(settings)
    rows = report["reconstruction"]["psnr_by_levels"]
    assert [(row["levels"], row["tokens"]) for row in rows] == [(1, 1), (2, 5), (3, 21)]
    config = json.loads((tmp_path / "generator" / "model" / "config.json").read_text())
    assert config["order"] == "levelwise"
    assert [spec["grid"] for spec in config["level_specs"]] == [[1, 1], [2, 2], [4, 4]]
    # Each step shows what is complete: the coarsest map after one step, the next after three more, the image after the last.
    pipe = hiergen.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    shown = []
    made = pipe(
        [1, 2],
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback_on_step_end=lambda _, step, time, values: shown.append(values),
        callback_on_step_end_tensor_inputs=["pyramid", "images"],
        **report["sampling"],
    )
    assert [len(values["pyramid"]) for values in shown] == [1, 1, 1, 2, 2, 2, 3]
    for values in shown:
        for level, whole in zip(values["pyramid"].levels, made.pyramid.levels, strict=False):
            assert torch.equal(level, whole)
    torch.testing.assert_close(shown[0]["images"], pipe.tokenizer.decode(made.pyramid.prefix(1)).clamp(-1, 1))


def test_emoji_are_the_same_job_in_color(tmp_path, monkeypatch) -> None:
    quick = dataclasses.replace(
        FAMILIES["FlowTransformer"], sampling={**FAMILIES["FlowTransformer"].sampling, **FEW["FlowTransformer"]}
    )
    monkeypatch.setitem(FAMILIES, "FlowTransformer", quick)
    usual = QuickstartSettings.usual("emoji")
    assert (usual.data, usual.tokenizer, usual.generator) == ("emoji", "hieratok-tiny-color", "flow-tiny")
    report = run_quickstart(dataclasses.replace(usual, out=str(tmp_path), samples_seen=64, num_generated=80))
    assert report["what"].startswith("quickstart on emoji drawn by Google (noto) and Microsoft (fluent-flat)")
    assert [row["tokens"] for row in report["reconstruction"]["psnr_by_levels"]] == [1, 5, 21]
    assert report["generation"]["images"] == "80 generated, 10 a class"
    assert 0.3 < report["classifier"]["real_test_accuracy"] < 0.95
    assert "## Does it draw the group that was asked for?" in (tmp_path / "report.md").read_text()
    pipe = hiergen.from_pretrained(tmp_path / "pipeline")
    assert pipe.class_names[5] == "Smileys & Emotion"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "digits"),
        (["--data", "emoji"], "emoji"),
        (["--seed", "1", "--data=emoji"], "emoji"),
        (["--data", "pictures"], "digits"),
    ],
)
def test_the_data_decide_what_the_other_settings_are_unless_they_are_given(args, expected) -> None:
    assert QuickstartSettings.usual(_named_data(args)).data == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "emoji"}, "num_generated is 500, expected a multiple of 8"),
        ({"samples_seen": 10}, "samples_seen is 10, expected at least 64"),
        ({"num_generated": 85}, "num_generated is 85, expected a multiple of 10"),
        ({"tokenizer": "restok-tin"}, "unknown preset 'restok-tin'; did you mean"),
        ({"tokenizer": "har-tiny"}, "tokenizer is 'har-tiny', a LevelAR; expected a preset of ResTok or HieraTok"),
        ({"generator": "mar3d-tiny"}, "generator is 'mar3d-tiny', a MaskedCascade; expected a preset of LevelAR or"),
        (
            {"tokenizer": "hieratok-tiny"},
            "'hieratok-tiny' gives continuous tokens, generator 'har-tiny' makes discrete ones; expected both alike, "
            "e.g. --tokenizer hieratok-tiny --generator flow-tiny",
        ),
        (
            {"generator": "mar-tiny"},
            "'restok-tiny' gives discrete tokens, generator 'mar-tiny' makes continuous ones; expected both alike, "
            "e.g. --tokenizer restok-tiny --generator har-tiny",
        ),
    ],
)
def test_bad_settings_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        QuickstartSettings(**changes)


def test_an_unwritable_folder_is_refused_before_anything_is_trained(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        run_quickstart(QuickstartSettings(out=str(tmp_path / "file" / "out")))
