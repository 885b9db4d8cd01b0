"""Parameters that are shared out over processes: by data parallelism (FSDP), or by tensor parallelism inside the blocks.

Fully sharded data parallelism: every process holds its share of weights, gradients, moments and averages.
PyTorch's `fully_shard` on the module whose forward pass is a player's loss, so that whatever the loss asks of the model finds whole
parameters; inside it every block that a model names in `_no_split_modules` (the list by which diffusers and Accelerate cut models) is
gathered when its turn comes. Tensor parallelism (`hiergen.nn.depth.tensor_parallel`): every process computes with its share, on the same
samples as all others. In both, checkpoints hold whole tensors: they are put together when one is written and cut when it is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hiergen.nn.depth.deltas import SharedBlock
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.depth.tensor_parallel import is_cut_by_heads, split_blocks


def shard(player: nn.Module, device: torch.device) -> None:
    """Share out the parameters of a player over all processes, in place; they must start equal on all of them.

    Args:
        player: A module whose forward pass is the only one of the training.
        device: Device of the shares.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    models: list[Any] = [module for module in player.modules() if isinstance(module, ModelMixin)]
    names = {name for model in models for name in model._no_split_modules or ()}
    # A shared block is gathered with what its steps add to it: the sums are made inside it.
    shared = [module for module in player.modules() if isinstance(module, SharedBlock)]
    inner = {id(module.block) for module in shared}
    blocks: list[FSDPModule] = [
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # From the inside out.
        for module in reversed(list(player.modules()))
        if isinstance(module, SharedBlock) or (type(module).__name__ in names and id(module) not in inner)
    ]
    root = fully_shard(player, mesh=mesh, reshard_after_forward=False)
    # By default a backward pass fetches ahead by the order in which passes forward were made, and pictures are drawn on one process
    # alone. A precaution: no test fails without it.
    for part, following in zip([root, *blocks], [*blocks, root], strict=True):
        part.set_modules_to_backward_prefetch([following])


def split(player: nn.Module, device: torch.device) -> None:
    """Let every process keep some heads and hidden channels of a player's blocks, in place; all must see the same samples from now on.

    Args:
        player: A module whose parameters are equal on all processes.
        device: Device of the shares.

    Raises:
        ValueError: If it has no stack of blocks, or one that cannot be split.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    stacks = [module for module in player.to(device).modules() if isinstance(module, BlockStack)]
    if not stacks:
        raise ValueError("sharding is 'tensor', but the model has no stack of blocks, expected a LevelAR")
    for stack in stacks:
        try:
            split_blocks(stack, mesh)
        except ValueError as error:
            raise ValueError(f"sharding is 'tensor', which this model cannot be trained with: {error}") from error


def beside_shares(is_split: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context in which tensors that all processes have, and shares of others, go into one call: those of `split` players."""
    if not is_split:
        return contextlib.nullcontext()
    from torch.distributed.tensor.experimental import implicit_replication

    return implicit_replication()


@contextlib.contextmanager
def gathered(player: nn.Module | None) -> Iterator[None]:
    """Inside, all parameters of a player are whole, on all processes, and using them asks nothing of other processes.

    Every process must enter; what they do inside may differ. A player that is not sharded, or None, is left as it is.
    """
    parts = [module for module in player.modules() if isinstance(module, FSDPModule)] if player is not None else []
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not player, recurse=False)


@contextlib.contextmanager
def whole_on_main(model: nn.Module, *, is_main: bool) -> Iterator[None]:
    """Give a model whole parameters on the CPU of the main process, to be saved and not run. Every process must enter."""
    shares: list[tuple[nn.Module, str, nn.Parameter]] = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in shares:
        value = whole(parameter.detach())
        if is_main:
            module.register_parameter(name, nn.Parameter(value.cpu(), requires_grad=parameter.requires_grad))
    try:
        yield
    finally:
        for module, name, parameter in shares:
            module.register_parameter(name, parameter)


def whole(value: Tensor) -> Tensor:
    """Return a tensor put together from the shares of all processes, which must all ask. A tensor that is not shared out is returned as is."""
    if not isinstance(value, DTensor):
        return value
    return value.full_tensor().flatten(0, 1) if is_cut_by_heads(value) else value.full_tensor()


def whole_tensors(tensors: Mapping[str, Tensor], *, is_main: bool) -> dict[str, Tensor]:
    """Return the whole tensors, for the main process only; those that were shared out come on the CPU. Every process must ask."""
    found = {}
    for name, value in tensors.items():
        if not isinstance(value, DTensor):
            found[name] = value
        elif is_main:
            found[name] = whole(value.detach()).cpu()
        else:
            whole(value.detach())
    return found


def share_like(value: Tensor, like: Tensor | None) -> Tensor:
    """Return this process's share of a whole tensor, cut as `like` is; the whole tensor if `like` is not shared out."""
    if not isinstance(like, DTensor):
        return value
    if is_cut_by_heads(like) and value.ndim == 2:
        value = value.unflatten(0, (3, -1))
    if value.shape != like.shape:
        return value
    # Without a source every process cuts what it has.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def launcher_shards() -> bool:
    """Return whether `accelerate launch` was told to shard (`--use_fsdp`, or its configuration file).

    Raises:
        ValueError: If it was told to keep parameters on the CPU, which is not done here.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ValueError("Accelerate is set to fsdp_offload_params, expected false: parameters stay on their devices")
    return True


@contextlib.contextmanager
def without_launchers_sharding() -> Iterator[None]:
    """Hide the sharding request from Accelerate: its own sharding needs a GPU and a model whose forward pass is its loss."""
    asked = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ["ACCELERATE_USE_FSDP"] = asked
