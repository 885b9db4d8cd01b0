import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.blocks.layers import add_branches
from hiergen.nn.depth.plan import cycle, ladder, plain
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.depth.tensor_parallel import split_blocks


def test_two_processes_give_what_one_gives(tmp_path) -> None:
    program = Path(__file__).with_name("in_two_processes.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("plain", "ladder", "hybrid"):
            for what, error in found[name].items():
                assert error < 1e-5, f"{name}: {what}"
        assert found["model"]["ids"] == 0
        assert found["model"]["loss"] < 1e-5
        assert found["sum"] == [3.0] * 4
        assert found["under way"] == "AsyncCollectiveTensor"


class Share(torch.Tensor):
    """What a branch gives while its sum is under way: to add it is to wait."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        for argument in args:
            if isinstance(argument, Share):
                argument.events.append(f"wait {argument.number}")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {})).as_subclass(torch.Tensor)


class Logged(nn.Module):
    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def branch(self, x: torch.Tensor) -> Share:
        number = sum(event.startswith("compute") for event in self.events) + 1
        self.events.append(f"compute {number}")
        with torch._C.DisableTorchFunctionSubclass():
            share = (x * 0.5).as_subclass(Share)
        share.events, share.number = self.events, number
        self.events.append(f"launch {number}")
        return share

    def forward(self, x: torch.Tensor, *, only=None) -> torch.Tensor:
        return add_branches(x, self.branch, self.branch, only)


def test_a_ladder_waits_for_a_branch_after_the_next_one_was_computed() -> None:
    orders = {}
    for name, plan in (("plain", plain(3)), ("ladder", ladder(3))):
        events: list[str] = []
        BlockStack([Logged(events) for _ in range(3)], plan.to_json())(torch.ones(1, 2, 3))
        assert sorted(events) == sorted(f"{what} {j}" for what in ("compute", "launch", "wait") for j in range(1, 7))
        orders[name] = events
    for j in range(1, 6):
        assert orders["plain"].index(f"wait {j}") < orders["plain"].index(f"compute {j + 1}")
        assert orders["ladder"].index(f"compute {j + 1}") < orders["ladder"].index(f"wait {j}")
        assert orders["ladder"].index(f"wait {j}") < orders["ladder"].index(f"wait {j + 1}")


def test_blocks_that_cannot_be_split_are_refused(tmp_path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        with pytest.raises(ValueError, match="block 0 is a SharedBlock, expected a CachedBlock"):
            split_blocks(BlockStack([CachedBlock(16, 2, 32)], cycle(1, loops=2, rank=2).to_json(), dim=16), mesh)
        with pytest.raises(ValueError, match="block 0 drops channels"):
            split_blocks(BlockStack([CachedBlock(16, 2, 32, ffn_dropout=0.1)]), mesh)
        with pytest.raises(ValueError, match="block 0 has 2 heads and 32 hidden channels, expected multiples of 3"):
            split_blocks(BlockStack([CachedBlock(16, 2, 32)]), _Three())
    finally:
        dist.destroy_process_group()


class _Three:
    def size(self) -> int:
        return 3
