"""Generators of texts through the one loop: from captions beside the codes to a pipeline that is told by words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import kinds
import pytest
import torch
import toy

from hiergen.data.text.captions import write_captions
from hiergen.data.text.config import CaptionConfig
from hiergen.generators.conditioning import read_words
from hiergen.pipelines.loading import from_pretrained
from hiergen.training.config import OptimConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig

pytestmark = pytest.mark.usefixtures("own_precision")
FLOW = {"dim": 16, "depth": 1, "num_heads": 2}
WORDS = CaptionConfig(num_tokens=3, dim=8, depth=0)


@pytest.fixture
def task(tmp_path) -> GeneratorTaskConfig:
    made = kinds.generator("flow-tiny", **FLOW)(tmp_path)
    assert isinstance(made, GeneratorTaskConfig)
    write_captions(tmp_path / "codes", [(f"thing {k}",) for k in range(10)])
    return made


def test_a_run_of_captions_ends_in_a_generator_of_texts(task, tmp_path) -> None:
    told = dataclasses.replace(task, captions=WORDS, validation_codes=task.codes)
    assert "TextToImagePipeline" in told.follows("MODEL")
    (sketched,) = told.count_parameters().values()
    fit(toy.toy_run(str(tmp_path / "run"), task=told, samples=16, optim=OptimConfig(lr=1e-2)))
    model = from_pretrained(tmp_path / "run" / "model")
    assert sketched == sum(parameter.numel() for parameter in model.parameters())
    assert (model.config["num_classes"], model.config["text_shape"]) == (None, [3, 8])
    assert "id2label" not in model.config
    assert "val/loss" in (tmp_path / "run" / "log.jsonl").read_text()
    made = model.generate(read_words(["thing 3"], 3), model.make_settings(num_steps=1))
    assert made.batch_size == 1


def test_a_generator_of_classes_goes_on_as_one_of_texts(task, tmp_path) -> None:
    fit(toy.toy_run(str(tmp_path / "classes"), task=task, samples=8, optim=OptimConfig(lr=1e-2)))
    told = dataclasses.replace(task, captions=WORDS, overrides={})
    run = toy.toy_run(str(tmp_path / "run"), task=told, samples=8, optim=OptimConfig(lr=0.0, weight_decay=0.0))
    fit(dataclasses.replace(run, init=str(tmp_path / "classes"), init_except=("label_embed", "cross")))
    before, after = (from_pretrained(tmp_path / name / "model") for name in ("classes", "run"))
    theirs = before.state_dict()
    shared = [name for name in after.state_dict() if name in theirs]
    assert all(torch.equal(after.state_dict()[name], theirs[name]) for name in shared)
    assert {name.split(".")[0] for name in after.state_dict() if name not in theirs} == {"label_embed", "blocks"}
    assert after.config["dim"] == 16
    note = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[0])["note"]
    assert "started from" in note


def test_captions_are_needed(task) -> None:
    (Path(task.codes) / "captions.jsonl").unlink()
    with pytest.raises(ValueError, match=r"holds no captions\.jsonl"):
        dataclasses.replace(task, captions=WORDS).build()
