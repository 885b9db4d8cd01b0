"""Adapters: what is trained, saved, loaded, fused and taken away, as diffusers does it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import kinds
import pytest
import torch
import toy
from safetensors.torch import load_file

from hiergen.generators.lora import LoraModel
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create
from hiergen.training import loop
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.config import LoraConfig, OptimConfig, TrainConfig
from hiergen.training.finetune.lora import add_adapters
from hiergen.training.loop import fit
from hiergen.training.tasks.settings import TokenizerTaskConfig

GENERATORS = ("har", "next scale", "mar", "flow", "cascade")


def run(out: Path, kind: str, codes: Path, **changes: object) -> TrainConfig:
    values = {"task": kinds.KINDS[kind](codes), "samples": 16, "optim": OptimConfig(lr=1e-2), "checkpoint_every": 8}
    return toy.toy_run(str(out), **{**values, "lora": LoraConfig(rank=2, alpha=4.0), **changes})


@pytest.mark.parametrize("kind", GENERATORS)
def test_adapters_of_every_generator_are_trained_saved_loaded_fused_and_taken_away(kind, tmp_path) -> None:
    """Started from weights, which stay as they are; without averages, so that what is saved is what was trained."""
    changes = {"samples": 8, "lora": LoraConfig(), "optim": OptimConfig(lr=1e-2)}
    fit(run(tmp_path / "base", kind, tmp_path, **changes))
    fit(run(tmp_path / "new", kind, tmp_path, init=str(tmp_path / "base"), ema_decay=None))
    before, after = (from_pretrained(tmp_path / name / "model").eval() for name in ("base", "new"))
    plain = {name: value.clone() for name, value in before.state_dict().items()}
    assert plain.keys() == after.state_dict().keys()
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, plain[name])}
    assert changed
    assert all(name.endswith(".weight") and value.ndim == 2 for name in changed for value in [plain[name]])
    file = tmp_path / "new" / "model" / "lora" / "pytorch_lora_weights.safetensors"
    assert all("lora_A" in name or "lora_B" in name for name in load_file(file))
    before.load_lora_adapter(file.parent)
    before.fuse_lora()
    for name, value in before.state_dict().items():
        if "lora_" not in name:
            torch.testing.assert_close(value, after.state_dict()[name.replace(".base_layer", "")])
    before.unfuse_lora()
    before.unload_lora()
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, plain[name])


@pytest.mark.parametrize("kind", ["har", "mar"])
def test_a_resumed_run_of_adapters_is_the_uninterrupted_one(kind, tmp_path, monkeypatch) -> None:
    fit(run(tmp_path / "whole", kind, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_agree", lambda self, number: 15 * (self.state.samples_seen == 8))
        with pytest.raises(loop.RunInterruptedError):
            fit(run(tmp_path / "parts", kind, tmp_path))
    fit(run(tmp_path / "parts", kind, tmp_path))
    whole, parts = (load_checkpoint(find_checkpoint(tmp_path / name / "checkpoints"))[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for stem, tensors in whole.items():
        for name, value in tensors.items():
            assert torch.equal(value, parts[stem][name]), f"{stem}: {name}"
    # What is saved is what the average of the adapters comes to, and no step has seen it.
    frozen = [name for name in whole["generator"] if "lora_" not in name]
    assert all(torch.equal(whole["generator"][name], whole["ema"][name]) for name in frozen if name in whole["ema"])


def test_a_pipeline_takes_adapters_by_diffusers_names(tmp_path) -> None:
    base = create("har-tiny", dim=20, depth=1)
    # An output layer of zeros would hide what an adapter does.
    torch.nn.init.normal_(base.head.weight)
    pipe = ClassToImagePipeline(tokenizer=create("restok-tiny"), generator=base.eval())
    ids, labels = torch.arange(16)[None], torch.tensor([3])
    plain = pipe.generator(ids, labels)
    other = create("har-tiny", dim=20, depth=1)
    other.load_state_dict(base.state_dict())
    add_adapters(other, LoraConfig(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    other.save_lora_adapter(tmp_path)
    pipe.load_lora_weights(tmp_path, adapter_name="mine")
    adapted = pipe.generator(ids, labels)
    assert not torch.allclose(adapted, plain)
    torch.testing.assert_close(adapted, other.eval()(ids, labels))
    pipe.disable_lora()
    torch.testing.assert_close(pipe.generator(ids, labels), plain)
    pipe.enable_lora()
    pipe.set_adapters("mine", 0.5)
    assert not torch.allclose(pipe.generator(ids, labels), adapted)
    pipe.set_adapters("mine")
    pipe.save_lora_weights(tmp_path / "again", "mine")
    again = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert all(
        torch.equal(value, again[name])
        for name, value in load_file(tmp_path / "pytorch_lora_weights.safetensors").items()
    )
    pipe.fuse_lora()
    torch.testing.assert_close(pipe.generator(ids, labels), adapted)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(pipe.generator(ids, labels), plain)


def test_an_adapter_begins_as_no_change_and_only_named_layers_have_one() -> None:
    model = create("har-tiny", dim=20, depth=2)
    ids, labels = torch.arange(16)[None], torch.tensor([3])
    torch.nn.init.normal_(model.head.weight)
    before = model.eval()(ids, labels)
    add_adapters(model, LoraConfig(rank=2, targets=("qkv",)), seed=0)
    assert torch.equal(model(ids, labels), before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 4
    assert all(".qkv.lora_" in name for name in trained)


def test_parts_that_are_drawn_anew_are_trained_whole_and_no_adapter_is_saved_alone(tmp_path) -> None:
    fit(run(tmp_path / "base", "har", tmp_path, lora=LoraConfig()))
    task = kinds.generator("har-tiny", count=10, dim=20, depth=1)(tmp_path / "b")
    index = tmp_path / "b" / "codes" / "index.json"
    index.write_text(index.read_text().replace('"9"', '"nine"'))
    init = {"init": str(tmp_path / "base"), "init_except": ("class_embedding",)}
    fit(run(tmp_path / "new", "har", tmp_path, task=task, **init))
    before, after = (from_pretrained(tmp_path / name / "model").state_dict() for name in ("base", "new"))
    assert not torch.equal(before["class_embedding.weight"][:9], after["class_embedding.weight"][:9])
    assert torch.equal(before["token_embedding.weight"], after["token_embedding.weight"])
    assert not (tmp_path / "new" / "model" / "lora").exists()


def test_what_has_no_adapters_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"lora.rank is 2, but a ResTok is no generator: leave it at 0"):
        fit(run(tmp_path / "a", "har", tmp_path, task=TokenizerTaskConfig(overrides=kinds.RESTOK)))
    with pytest.raises(ValueError, match=r"lora.targets holds 'qkw', which no linear layer is named; did you mean qkv"):
        add_adapters(create("har-tiny", dim=20, depth=1), LoraConfig(rank=2, targets=("qkw",)), seed=0)
    with pytest.raises(ValueError, match="rank is -1, expected at least 0"):
        LoraConfig(rank=-1)
    with pytest.raises(
        ValueError, match=r"lora.alpha or lora.targets is given, but lora.rank is 0: give --lora.rank too"
    ):
        LoraConfig(targets=("qkv",))
    assert (
        loop._Run(run(tmp_path / "b", "har", tmp_path), "t", None).task.unshardable
        == "lora.rank is given, and adapters are small"
    )


def test_a_pickle_is_neither_read_nor_written(tmp_path) -> None:
    model = create("har-tiny", dim=20, depth=1)
    assert isinstance(model, LoraModel)
    for options in ({"weight_name": "lora.bin"}, {"use_safetensors": False}):
        with pytest.raises(ValueError, match=r"expected a name that ends in .safetensors: a pickle can run code"):
            model.load_lora_adapter(tmp_path, **options)
    torch.save({"x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(OSError, match="safetensors"):
        model.load_lora_adapter(tmp_path)
    with pytest.raises(ValueError, match="safe_serialization is False, expected True"):
        model.save_lora_adapter(tmp_path, safe_serialization=False)


def test_a_plan_of_adapters_counts_what_is_trained(tmp_path, capsys) -> None:
    from hiergen.training.run import run_recipe

    config = dataclasses.replace(run(tmp_path / "new", "har", tmp_path), lora=LoraConfig())
    assert run_recipe(config, ["--lora.rank", "2", "--dry-run"], name="p") is None
    model = create("har-tiny", dim=20, depth=1)
    add_adapters(model, LoraConfig(rank=2), seed=0)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"# generator: {count:,} parameters" in capsys.readouterr().out
