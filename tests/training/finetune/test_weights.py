"""A new run that starts from weights: where they come from, what must fit, and which classes keep their rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import kinds
import pytest
import torch
import toy

from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create
from hiergen.training import loop
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.finetune import weights
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import GeneratorTaskConfig, TaskConfig, TokenizerTaskConfig

SIZES = {
    "har": ("har-tiny", {"dim": 20, "depth": 1}),
    "mar": ("mar-tiny", kinds.MAR),
    "flow": ("flow-tiny", {"dim": 16, "depth": 1, "num_heads": 2}),
    "cascade": ("mar3d-tiny", kinds.CASCADE),
}


def task_of(kind: str, folder: Path, classes: list[str], **overrides: object) -> TaskConfig:
    """Return the task of a generator on a cache whose classes have names."""
    preset, sizes = SIZES[kind]
    task = kinds.generator(preset, count=len(classes), **{**sizes, **overrides})(folder)
    index = folder / "codes" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "classes": classes}))
    return task


def run(out: Path, task: TaskConfig, **changes: object) -> TrainConfig:
    """Return a run of one step that changes nothing: its learning rate is 0."""
    still = OptimConfig(lr=0.0, weight_decay=0.0)
    return toy.toy_run(str(out), **{"task": task, "samples": 8, "optim": still, **changes})


def history(out: Path) -> list[str]:
    return [json.loads(line)["note"] for line in (out / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """A finished run of a generator of cats, dogs and birds."""
    folder = tmp_path_factory.mktemp("pets")
    task = task_of("har", folder, ["cat", "dog", "bird"])
    fit(run(folder / "run", task, optim=OptimConfig(lr=1e-2)))
    return folder


@pytest.mark.parametrize("where", ["run", "run/model", "pipeline"])
def test_a_run_starts_from_a_run_a_model_or_a_pipeline(pets, where, tmp_path, capsys) -> None:
    model = from_pretrained(pets / "run" / "model")
    ClassToImagePipeline(tokenizer=create("restok-tiny"), generator=model).save_pretrained(pets / "pipeline")
    # The preset is of another size; the weights say the sizes.
    task = dataclasses.replace(task_of("har", tmp_path, ["cat", "dog", "bird"]), overrides={})
    fit(run(tmp_path / "new", task, init=str(pets / where), ema_decay=0.5))
    started = from_pretrained(tmp_path / "new" / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, started.state_dict()[name]), name
    count = len(model.state_dict())
    said = f"started from {str(pets / where)!r}: {count} of {count} tensors copied whole"
    assert history(tmp_path / "new") == [said, "class_embedding.weight: 3 of 3 classes kept, 0 drawn anew"]
    assert said in capsys.readouterr().err


def test_a_run_starts_from_a_packaged_model_and_resumes_bit_for_bit(tmp_path, monkeypatch) -> None:
    task = dataclasses.replace(kinds.generator("har-tiny")(tmp_path), overrides={"depth": 4})
    init = {"init": "digits-1d", "samples": 16, "checkpoint_every": 8, "ema_decay": 0.9}
    config = run(tmp_path / "whole", task, **init, optim=OptimConfig(lr=1e-3))
    fit(config)
    parts = dataclasses.replace(config, out=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_agree", lambda self, number: 15 * (self.state.samples_seen == 8))
        with pytest.raises(loop.RunInterruptedError):
            fit(parts)
    fit(parts)
    digits = from_pretrained("digits-1d").generator.state_dict()
    whole, resumed = (from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert any(not torch.equal(value, digits[name]) for name, value in whole.items())
    torch.testing.assert_close(whole["token_embedding.weight"], digits["token_embedding.weight"], atol=0.01, rtol=0)
    # What a start says is not said again.
    assert len(history(tmp_path / "parts")) == len(history(tmp_path / "whole"))


def test_a_tokenizer_starts_from_weights_with_overrides_on_top(tmp_path) -> None:
    task = TokenizerTaskConfig(overrides=kinds.RESTOK)
    fit(run(tmp_path / "old", task))
    fit(run(tmp_path / "new", TokenizerTaskConfig(overrides={"min_tokens": 2}), init=str(tmp_path / "old")))
    assert history(tmp_path / "new")[-1] == "min_tokens was 1, is 2"
    old, new = (from_pretrained(tmp_path / name / "model") for name in ("old", "new"))
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


@pytest.mark.parametrize("kind", list(SIZES))
def test_classes_of_the_same_name_keep_their_rows(kind, tmp_path) -> None:
    """Dogs were the second of three and are the first of two."""
    fit(run(tmp_path / "old", task_of(kind, tmp_path / "a", ["cat", "dog", "bird"]), seed=1))
    task = task_of(kind, tmp_path / "b", ["dog", "wolf"])
    init = {"init": str(tmp_path / "old"), "init_except": ("class_embedding",)}
    with pytest.raises(
        ValueError, match=r"does not fit: .*(class_embedding|label_embed).weight is \(\d, \d+\) there, \(\d, \d+\) here"
    ):
        fit(run(tmp_path / "new", task, init=str(tmp_path / "old")))
    fit(run(tmp_path / "new", task, **init))
    old, new = (from_pretrained(tmp_path / name / "model").state_dict() for name in ("old", "new"))
    tables = [name for name in new if "class_embedding" in name or "label_embed" in name]
    assert len(tables) == (2 if kind == "cascade" else 1)
    for name in tables:
        assert torch.equal(new[name][0], old[name][1])
        assert not any(torch.equal(new[name][1], row) for row in old[name])
        if len(new[name]) == 3:
            assert torch.equal(new[name][2], old[name][3]), "the row of no class"
        assert f"{name}: 1 of 2 classes kept, 1 drawn anew" in history(tmp_path / "new")
    assert all(torch.equal(value, old[name]) for name, value in new.items() if name not in tables)


def test_classes_without_names_keep_their_rows_by_number_only_if_there_are_as_many(pets, tmp_path) -> None:
    old, new = create("har-tiny", dim=20, depth=1, num_classes=3), create("har-tiny", dim=20, depth=1, num_classes=3)
    weights.copy_weights(new, old, init="x")
    assert torch.equal(new.class_embedding.weight, old.class_embedding.weight)
    fewer = create("har-tiny", dim=20, depth=1, num_classes=2)
    said, fresh = weights.copy_weights(fewer, old, init="x", may_differ=["class_embedding"])
    assert "class_embedding.weight: 0 of 2 classes kept, 2 drawn anew" in said
    assert fresh == {"class_embedding.weight"}


def test_as_many_other_classes_are_refused_by_name(pets, tmp_path) -> None:
    task = task_of("har", tmp_path, ["dog", "cat", "bird"])
    with pytest.raises(ValueError, match="its classes are cat, dog, bird, those of the data dog, cat, bird"):
        fit(run(tmp_path / "new", task, init=str(pets / "run")))


def test_named_parts_are_drawn_anew_where_they_do_not_fit(pets, tmp_path) -> None:
    task = task_of("har", tmp_path, ["cat", "dog", "bird"], ffn_dim=24, dim=20)
    with pytest.raises(ValueError, match=r"ffn.* there, .* here.*name the parts that may differ"):
        fit(run(tmp_path / "new", task, init=str(pets / "run")))
    feedforward = next(
        name for name, _ in from_pretrained(pets / "run" / "model").named_modules() if name.endswith("ffn")
    )
    fit(run(tmp_path / "new", task, init=str(pets / "run"), init_except=(feedforward,)))
    assert any("drawn anew" in note and "ffn" in note for note in history(tmp_path / "new"))
    assert any(note.endswith("is 24") and note.startswith("ffn_dim was") for note in history(tmp_path / "new"))


def test_what_cannot_be_started_from_is_refused(pets, tmp_path) -> None:
    har = task_of("har", tmp_path, ["cat", "dog", "bird"])
    flow = task_of("flow", tmp_path / "flow", ["cat", "dog", "bird"])
    with pytest.raises(ValueError, match="holds LevelAR, expected a FlowTransformer as this recipe trains"):
        fit(run(tmp_path / "new", flow, init=str(pets / "run")))
    with pytest.raises(ValueError, match="a ToyConfig has no preset that says what to load"):
        fit(run(tmp_path / "new", toy.ToyConfig(), init=str(pets / "run")))
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match="a run that has not written its model yet: finish it first"):
        fit(run(tmp_path / "new", har, init=str(tmp_path / "begun")))
    with pytest.raises(
        ValueError, match=r"init_except holds 'class_embeding', .* of a LevelAR; did you mean class_embedding"
    ):
        fit(run(tmp_path / "new", har, init=str(pets / "run"), init_except=("class_embeding",)))
    with pytest.raises(ValueError, match=r"init_except is .*, but init is None"):
        run(tmp_path / "new", har, init_except=("head",))


def test_names_of_classes_are_saved_and_read_without_a_word(pets, caplog) -> None:
    model = from_pretrained(pets / "run" / "model")
    assert dict(model.config.id2label) == {"0": "cat", "1": "dog", "2": "bird"}
    assert "not expected" not in caplog.text
    assert "id2label" not in create("har-tiny").config


def test_a_hierarchy_is_that_of_the_names_of_the_data_where_the_task_reads_it() -> None:
    classes = ClassHierarchy.from_names(["wild/ape", "pets/cat"]).to_json()
    source = create("var-tiny", dim=16, depth=1, num_heads=2, num_classes=2, class_hierarchy=classes)
    kept = weights.take_sizes(GeneratorTaskConfig("var-tiny"), source).overrides
    assert kept["class_hierarchy"] == classes
    assert kept["dim"] == 16
    assert "num_classes" not in kept
    assert (
        "class_hierarchy" not in weights.take_sizes(GeneratorTaskConfig("var-tiny", class_paths=True), source).overrides
    )


def test_the_copy_of_the_tokenizers_codebook_stays_that_of_the_codes() -> None:
    sizes = {"dim": 8, "depth": 1, "num_heads": 2}
    model, source = create("var-tiny", **sizes), create("var-tiny", **sizes)
    codebook = model.quantizer.codebook.clone()
    said, fresh = weights.copy_weights(model, source, init="x", may_differ=["class_embedding"])
    assert torch.equal(model.quantizer.codebook, codebook)
    assert not torch.equal(source.quantizer.codebook, codebook)
    assert torch.equal(model.code_proj.weight, source.code_proj.weight)
    assert not any("quantizer" in name for name in fresh)
    count = len(model.state_dict())
    assert said[0].startswith(f"started from 'x': {count - len(fresh) - 9} of {count} tensors copied whole")
