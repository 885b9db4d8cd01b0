"""Blocks split over two CPU processes (gloo) against whole ones on one, and checkpoints that go from one to the other."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import hiergen
from hiergen.registry import create
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.config import TrainConfig
from hiergen.training.processes.launch import is_sharded, is_split, share_of_data
from hiergen.training.processes.sharding import split
from hiergen.training.tasks.settings import GeneratorTaskConfig


@pytest.fixture(scope="module")
def runs(tmp_path_factory, run_beside) -> Path:
    return run_beside("in_parts.py", tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", ["tensor", "none, then tensor", "tensor, then none"])
def test_two_processes_train_as_one(runs, curve, name) -> None:
    for which in ("none", name):
        assert (runs / f"{which}.error").read_text() == ""
    expected, found = curve(runs / "none"), curve(runs / name)
    assert len(expected) == len(found) == 6
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=1e-5, abs=1e-6), key
    (tensors, state), (others, state_of_others) = (
        load_checkpoint(find_checkpoint(runs / which / "checkpoints")) for which in ("none", name)
    )
    assert tensors.keys() == others.keys()
    assert state["best"] == pytest.approx(state_of_others["best"])
    for stem, group in tensors.items():
        assert group.keys() == others[stem].keys()
        for key, value in group.items():
            assert others[stem][key].shape == value.shape
            torch.testing.assert_close(others[stem][key], value, rtol=1e-4, atol=2e-5, msg=f"{stem}: {key}")


def test_each_process_holds_its_part_of_the_blocks_and_the_model_is_whole(runs) -> None:
    whole = json.loads((runs / "none.held-0").read_text())
    parts = [json.loads((runs / f"tensor.held-{rank}").read_text()) for rank in range(2)]
    blocks = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    for name, count in whole.items():
        assert [part[name] for part in parts] == [count - blocks // 2] * 2
    for kind in ("model", "best"):
        made, expected = (hiergen.from_pretrained(str(runs / name / kind)).state_dict() for name in ("tensor", "none"))
        for name, value in expected.items():
            torch.testing.assert_close(made[name], value, rtol=0, atol=2e-5)


def test_what_the_processes_see(monkeypatch) -> None:
    processes = Mock(spec=Accelerator, process_index=1, num_processes=2)
    config = TrainConfig(task=GeneratorTaskConfig(), out="x", samples=8, sharding="tensor")
    assert is_split(config, processes)
    assert share_of_data(config, processes) == (0, 1)
    assert share_of_data(TrainConfig(task=GeneratorTaskConfig(), out="x", samples=8), processes) == (1, 2)
    assert not is_sharded(config, processes)
    with pytest.raises(ValueError, match="compile and sharding are both set"):
        is_sharded(
            TrainConfig(task=GeneratorTaskConfig(), out="x", samples=8, sharding="tensor", compile=True), processes
        )
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="sharding is 'tensor', but the launcher was told to shard"):
        is_sharded(config, processes)


def test_models_that_cannot_be_split_are_refused(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="the model has no stack of blocks, expected a LevelAR"):
            split(nn.Linear(2, 2), torch.device("cpu"))
        whole = "sharding is 'tensor', which this model cannot be trained with: block 0"
        with pytest.raises(ValueError, match=f"{whole} drops channels"):
            split(create("har-tiny", dim=32, num_heads=2, depth=1), torch.device("cpu"))
        with pytest.raises(ValueError, match=f"{whole} is a ModulatedBlock, expected a CachedBlock"):
            split(create("flow-tiny", dim=32, num_heads=2, depth=1), torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()
