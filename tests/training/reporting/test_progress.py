"""What a run tells where its output is no terminal: first what was found, then how far it is, with the stage's name apart."""

from __future__ import annotations

import dataclasses
import queue

import pytest
import torch
from toy import toy_run

from hiergen import telling
from hiergen.data.codes import INDEX
from hiergen.data.config import DataConfig
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.shapes.dataset import ShapeDataConfig
from hiergen.files import write_json
from hiergen.training.config import TrainConfig
from hiergen.training.loop import RunInterruptedError, fit
from hiergen.training.reporting.progress import TrainProgress, describe_task
from hiergen.training.run import run_recipe
from hiergen.training.tasks.settings import (
    GeneratorTaskConfig,
    ShapeGeneratorTaskConfig,
    ShapeTokenizerTaskConfig,
    TokenizerTaskConfig,
)


def test_the_first_line_says_what_was_found_and_where_it_goes(tmp_path, capsys) -> None:
    config = toy_run(str(tmp_path / "run"))
    task = config.task.build()
    count = sum(parameter.numel() for parameter in task.model.parameters())
    fit(config, title="toy", cpu=True)
    first, *later = capsys.readouterr().err.splitlines()
    assert first == f"toy: {len(task.dataset)} samples; Toy of {count} parameters on cpu -> {tmp_path / 'run'}"
    assert later[-1].startswith("toy 100%  toy/loss ")
    fit(dataclasses.replace(config, samples=2 * config.samples), title="toy", cpu=True)
    seen = f", {config.samples:,} of {2 * config.samples:,} samples seen before"
    assert next(line for line in capsys.readouterr().err.splitlines() if line.startswith("toy: ")).endswith(seen)


def test_classes_and_frozen_parts_are_told() -> None:
    task = toy_run("unused").task.build()
    task.dataset = ImageSet(torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 0]), ("cat", "dog"))
    task.model.second.requires_grad_(False)
    assert describe_task(task) == (
        "3 pictures of 2 classes (cat 2, dog 1), 8x8 pixels; 3 pictures: a model will learn so few by heart; "
        "Toy of 49 parameters, 40 of them trained,"
    )


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_told_in_lines_by_the_first_process(quiet, monkeypatch) -> None:
    monkeypatch.setattr(telling, "INTERVAL", 0.01)
    lines: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(telling, "say", lines.put)
    with TrainProgress("shape tokenizer", 100, quiet, done=20) as progress:
        progress.advance(60)
        if not quiet:
            line = next(line for line in iter(lambda: lines.get(timeout=30), None) if ": 60" in line)
            assert line.startswith("shape tokenizer: 60 of 100 samples after ")
    assert not quiet or lines.empty()


@pytest.mark.parametrize(
    ("task", "title"),
    [(ShapeTokenizerTaskConfig(), "shape tokenizer"), (GeneratorTaskConfig(), "generator")],
    ids=["shape tokenizer", "generator"],
)
def test_the_words_of_a_stage_are_apart(task, title, tmp_path, monkeypatch) -> None:
    titles: list[str] = []

    def asked(config: TrainConfig, *, title: str) -> None:
        titles.append(title)
        raise InterruptedError

    monkeypatch.setattr("hiergen.training.loop.fit", asked)
    with pytest.raises(InterruptedError):
        run_recipe(TrainConfig(task=task, out=str(tmp_path), samples=1), [], name="train")
    assert titles == [title]


def _tokenizer(source: str) -> TokenizerTaskConfig:
    return TokenizerTaskConfig(data=DataConfig(source=source, size=48))


@pytest.mark.parametrize(
    ("task", "follows"),
    [
        (_tokenizer("my pictures"), "hiergen reconstruct --tokenizer run/model --images 'my pictures'"),
        (_tokenizer("hf:pets"), "hiergen encode --tokenizer run/model --data.source hf:pets"),
        (_tokenizer("clips:my clips"), "hiergen encode --tokenizer run/model --videos 'my clips'"),
        (
            ShapeTokenizerTaskConfig(data=ShapeDataConfig(source="shapes")),
            "hiergen encode --tokenizer run/model --shapes shapes",
        ),
        (ShapeGeneratorTaskConfig(), "in Python, hiergen.ClassToShapePipeline(tokenizer="),
        (ShapeGeneratorTaskConfig(condition="image"), "hiergen info run/model"),
    ],
)
def test_what_follows_a_training_fits_its_data(task, follows) -> None:
    assert task.follows("run/model").startswith(follows)


@pytest.mark.parametrize(("grid", "kind"), [([4, 4], "Image"), (None, "Image"), ([8, 4, 4], "Video")])
def test_a_trained_generator_is_told_the_pipeline_of_its_codes(grid, kind, tmp_path) -> None:
    write_json(tmp_path / INDEX, {"specs": [{"grid": grid}], "classes": []})
    said = GeneratorTaskConfig(codes=str(tmp_path)).follows("run/model")
    assert said.startswith(f"in Python, hiergen.ClassTo{kind}Pipeline(tokenizer=")
    assert 'generator=hiergen.from_pretrained("run/model")' in said
    frames = 'tokenizer=hiergen.FrameTokenizer.of(hiergen.from_pretrained("TOKENIZER"), num_frames=8)'
    assert (frames in said) == (kind == "Video")


def test_a_training_ends_with_what_follows(tmp_path, capsys) -> None:
    config = toy_run(str(tmp_path / "run"))
    run_recipe(dataclasses.replace(config, samples=config.batch_size + 1), [], name="train")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"next: hiergen info {tmp_path / 'run' / 'model'}"
    # A last batch that sees more than was asked for is no more than all.
    assert "toy config 100%" in printed.err


def test_an_interruption_is_named_as_people_know_it() -> None:
    assert str(RunInterruptedError(2, 1_200)) == "stopped by Ctrl-C after 1,200 samples; run again to continue"
    assert str(RunInterruptedError(15, 64)) == "stopped by SIGTERM after 64 samples; run again to continue"
