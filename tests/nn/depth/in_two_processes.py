"""Run stacks whole and split over two forked CPU processes: `python in_two_processes.py FOLDER`; `test_tensor_parallel.py` reads the results."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial

from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.level_ar.presets import doubling_specs
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.depth.plan import DepthPlan, ladder, plain
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.depth.tensor_parallel import reduce_later, split_blocks
from hiergen.nn.positions import rotary_table
from hiergen.pyramid import TokenPyramid, specs_to_json

PLANS = {"plain": plain(2), "ladder": ladder(2), "hybrid": ladder(3, last=1)}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def stack_errors(plan: DepthPlan, mesh: DeviceMesh) -> dict[str, float]:
    torch.manual_seed(0)
    whole = BlockStack([CachedBlock(64, 4, 96) for _ in range(plan.num_blocks)], plan.to_json(), dim=64)
    split = copy.deepcopy(whole)
    split_blocks(split, mesh)
    rotary = rotary_table(torch.arange(8, dtype=torch.float64)[:, None], 16)
    x = torch.randn(2, 8, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, found = whole(x, rotary), split(y, rotary)
    expected.square().sum().backward()
    found.square().sum().backward()
    theirs, ours = whole[0], split[0]
    qkv = ours.attention.qkv["weight"].grad
    return {
        "output": distance(found, expected),
        "input's gradient": distance(y.grad, x.grad),
        "norm's gradient": distance(ours.attention_norm.weight.grad, theirs.attention_norm.weight.grad),
        "gate's gradient": distance(ours.ffn.gate.weight.grad.full_tensor(), theirs.ffn.gate.weight.grad),
        "down's gradient": distance(ours.ffn.down.weight.grad.full_tensor(), theirs.ffn.down.weight.grad),
        "out's gradient": distance(ours.attention.out["weight"].grad.full_tensor(), theirs.attention.out.weight.grad),
        "qkv's gradient": distance(qkv.full_tensor().flatten(0, 1), theirs.attention.qkv.weight.grad),
    }


def model_errors(mesh: DeviceMesh) -> dict[str, float]:
    specs = doubling_specs(8, dim=4, vocab_size=16)
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "dim": 32, "num_heads": 2, "ffn_dim": 32, "depth": 2, "num_ar_tokens": 1}
    dropouts = dict.fromkeys(("embedding_dropout", "attention_dropout", "ffn_dropout", "class_dropout"), 0.0)
    whole = LevelAR(level_specs=specs_to_json(specs), **sizes, **dropouts, plan=ladder(2).to_json())
    torch.nn.init.normal_(whole.head.weight)
    split = copy.deepcopy(whole)
    split_blocks(split.blocks, mesh)
    labels, how = torch.tensor([0, 1]), LevelARSettings(greedy=True)
    ids = [model.generate(labels, how).concat() for model in (whole, split)]
    pyramid = TokenPyramid.split(ids[0], specs)
    losses = [model.loss(pyramid, labels)["loss"] for model in (whole, split)]
    return {"ids": float((ids[0] != ids[1]).sum()), "loss": distance(losses[1], losses[0])}


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, object] = {name: stack_errors(plan, mesh) for name, plan in PLANS.items()}
    found["model"] = model_errors(mesh)
    share = DTensor.from_local(torch.full((4,), rank + 1.0), mesh, [Partial()])
    under_way = reduce_later(share)
    found["under way"] = type(under_way).__name__
    found["sum"] = (under_way + 0).tolist()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.start_processes(main, (sys.argv[1],), nprocs=2, start_method="fork")
