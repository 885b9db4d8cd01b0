"""A recipe as a program: every field from the command line and from a file, and a plan that can be fed back."""

from __future__ import annotations

import json
from unittest.mock import Mock

import kinds
import pytest
import toy

from hiergen.config import to_json
from hiergen.data.config import DataConfig
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create
from hiergen.training import run
from hiergen.training.config import TrainConfig
from hiergen.training.loop import RunInterruptedError
from hiergen.training.run import run_recipe
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import PerceptualConfig

HIERATOK = {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}


def hieratok(out: str, **changes: object) -> TrainConfig:
    task = TokenizerTaskConfig("hieratok-tiny", HIERATOK, **changes)
    return toy.toy_run(out, task=task, samples=8)


def test_another_size_of_pictures_is_two_options(tmp_path) -> None:
    words = [
        "--task.data.size",
        "48",
        "--task.overrides.image-size",
        "48",
        "--task.overrides.scales",
        "1",
        "2",
        "3",
        "4",
        "6",
    ]
    result = run_recipe(hieratok(str(tmp_path / "run")), words, name="p")
    assert result is not None
    model = from_pretrained(result.model_dir)
    assert (model.config.image_size, list(model.config.scales)) == (48, [1, 2, 3, 4, 6])


@pytest.mark.parametrize("part", ["data", "validation"])
def test_sizes_that_do_not_fit_name_the_options(tmp_path, part) -> None:
    config = hieratok(str(tmp_path / "run"), validation=DataConfig(split="test"))
    message = rf"{part}.size is 48, but the tokenizer takes pictures of 32x32 pixels: give --task.{part}.size 32, or --task.overrides.image-size 48"
    for more in ([], ["--dry-run"]):
        with pytest.raises(ValueError, match=message):
            run_recipe(config, [f"--task.{part}.size", "48", *more], name="p")


def test_an_unknown_override_and_too_few_classes_are_named(tmp_path) -> None:
    with pytest.raises(
        ValueError,
        match="HieraTok has no argument 'image_sise' to override in 'hieratok-tiny'; did you mean image_size",
    ):
        run_recipe(hieratok(str(tmp_path / "run")), ["--task.overrides.image-sise", "48"], name="p")
    with pytest.raises(ValueError, match="ResTok has no argument 'vocab' to override in 'restok-tiny'"):
        create("restok-tiny", vocab=3)
    config = toy.toy_run(str(tmp_path / "run"), task=kinds.KINDS["har"](tmp_path))
    with pytest.raises(ValueError, match=r"overrides.num_classes is 4, but the cache .* has 10 classes: leave it out"):
        run_recipe(config, ["--task.overrides.num-classes", "4"], name="p")


def test_a_folder_is_no_preset(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"unknown preset '.*'; it is a folder: --init starts from its weights"):
        run_recipe(hieratok(str(tmp_path / "run")), ["--task.preset", str(tmp_path)], name="p")


def test_a_plan_is_a_file_that_can_be_fed_back(tmp_path, capsys) -> None:
    recipe = hieratok(str(tmp_path / "run"), perceptual=PerceptualConfig(weights="random"))
    words = ["--optim.lr", "1e-5", "--task.overrides.latent-dim", "6", "--task.perceptual", "None", "--dry-run"]
    run_recipe(recipe, words, name="p")
    file = tmp_path / "plan.yaml"
    file.write_text(capsys.readouterr().out)
    # The command line is on top of the file.
    for option in (["--config", str(file)], [f"--config={file}"]):
        run_recipe(recipe, [*option, "--seed", "3", "--dry-run"], name="p")
        printed = capsys.readouterr().out
        found = json.loads("\n".join(line for line in printed.splitlines() if not line.startswith("#")))
        assert (found["optim"]["lr"], found["seed"], found["task"]["perceptual"]) == (1e-5, 3, None)
        assert found["task"]["overrides"] == {**HIERATOK, "latent_dim": 6}
        assert found == {**to_json(recipe), "optim": found["optim"], "seed": 3, "task": found["task"]}
        assert "# tokenizer: " in printed


def test_a_file_of_another_task_or_with_an_unknown_field_is_refused(tmp_path) -> None:
    file = tmp_path / "a.json"
    recipe = hieratok(str(tmp_path / "run"))
    for given, message in (
        ({"task": {"kind": "ToyConfig"}}, "TrainConfig.task.kind is 'ToyConfig', expected 'TokenizerTaskConfig'"),
        ({"task": {"presett": "x"}}, r"TrainConfig.task has no field 'presett'; did you mean preset\?"),
        ({"sampels": 3}, r"TrainConfig has no field 'sampels'; did you mean samples\?"),
    ):
        file.write_text(json.dumps(given))
        with pytest.raises(ValueError, match=message):
            run_recipe(recipe, ["--config", str(file)], name="p")
    with pytest.raises(ValueError, match="config '' cannot be read"):
        run_recipe(recipe, ["--config"], name="p")


def test_a_plan_takes_the_sizes_of_what_a_run_starts_from(tmp_path, capsys) -> None:
    config = toy.toy_run(str(tmp_path / "run"), task=TokenizerTaskConfig("restok-tiny"))
    create("restok-tiny", **kinds.RESTOK).save_pretrained(tmp_path / "small")
    run_recipe(config, ["--init", str(tmp_path / "small"), "--dry-run"], name="p")
    count = sum(parameter.numel() for parameter in create("restok-tiny", **kinds.RESTOK).parameters())
    assert f"# tokenizer: {count:,} parameters" in capsys.readouterr().out


def test_a_program_that_is_stopped_ends_with_its_signal_and_no_other_error_is_hidden(monkeypatch, capsys) -> None:
    errors = [RunInterruptedError(15, 32), RuntimeError("out of memory")]
    monkeypatch.setattr(run, "share_cores", lambda: "")
    monkeypatch.setattr(run, "run_recipe", Mock(side_effect=errors))
    monkeypatch.setattr("sys.argv", ["recipe.py"])
    with pytest.raises(SystemExit) as stopped:
        run.main(lambda: toy.toy_run("out"))
    assert stopped.value.code == 128 + 15
    assert "stopped by SIGTERM after 32 samples" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="out of memory"):
        run.main(lambda: toy.toy_run("out"))


def test_help_of_a_program_does_not_watch_the_cores(monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "share_cores", lambda: pytest.fail("watched"))
    monkeypatch.setattr("sys.argv", ["recipe.py", "--help"])
    with pytest.raises(SystemExit):
        run.main(lambda: hieratok("out"))
    assert "--task.data.size" in capsys.readouterr().out
