"""A trained model with a plain stack turned into a recursive one, or one that runs as a ladder.

    W'_k = mean or choice of the layers k, k + K, k + 2K ...        U_l A_l = the first r singular parts of W_l - W'_(l mod K)

At full rank, with vectors of its own for each step or with norms folded into the matrices behind them, the converted model is the
original up to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from hiergen.nn.depth.deltas import ParameterDelta, SharedBlock
from hiergen.nn.depth.plan import DepthPlan, cycle, ladder, stepwise_layers
from hiergen.nn.depth.stack import BlockStack

Start = Literal["average", "stepwise", "lower"]
Vectors = Literal["own", "folded", "shared"]

#: Norms of a block and the linear layers that alone read them, by the block's class.
_NORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "CachedBlock": {"attention_norm": ("attention.qkv",), "ffn_norm": ("ffn.gate", "ffn.up")},
    "TransformerBlock": {"norm1": ("attention.qkv",), "norm2": ("ffn.w12",)},
    "EncoderBlock": {"norm1": ("attn.qkv",), "norm2": ("mlp.fc1",)},
}


@torch.no_grad()
def fold_vectors(block: nn.Module) -> None:
    """Move the weights and biases of norms into the linear layers behind them, in place.

    What the block computes stays. Biases of linear layers and norms of heads remain.

    Args:
        block: A block whose norms are read by linear layers alone.

    Raises:
        ValueError: If it is of a class whose norms cannot be folded, or a norm's bias has no bias to go to.
    """
    kind = type(block).__name__
    if kind not in _NORMS:
        raise ValueError(f"vectors is 'folded', but the blocks are {kind}, expected {', '.join(_NORMS)}: take 'own'")
    for name, readers in _NORMS[kind].items():
        norm = block.get_submodule(name)
        weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
        for reader in readers:
            layer = block.get_submodule(reader)
            matrix = layer.get_parameter("weight")
            if bias is not None:
                if layer.bias is None:
                    raise ValueError(f"vectors is 'folded', but {name} has a bias and {reader} has none: take 'own'")
                layer.get_parameter("bias").copy_(layer.bias.double() + matrix.double() @ bias.double())
            matrix.copy_(matrix.double() * weight.double())
        weight.fill_(1)
        if bias is not None:
            bias.zero_()


def shared_start(layers: Sequence[Tensor], num_blocks: int, start: str) -> list[Tensor]:
    """Return the parameter of each of `num_blocks` blocks in float64, from that of every layer.

    Args:
        layers: The parameter of layer 0, 1, 2 ...
        num_blocks: Number of blocks; layer l runs block l modulo this.
        start: "average" of the layers of a block; "stepwise": layers evenly spaced over the stack (`stepwise_layers`); "lower": the first.

    Raises:
        ValueError: If the start is unknown.
    """
    if start not in get_args(Start):
        raise ValueError(f"start is {start!r}, expected one of {get_args(Start)}")
    if start == "average":
        return [torch.stack([x.double() for x in layers[block::num_blocks]]).mean(dim=0) for block in range(num_blocks)]
    chosen = stepwise_layers(len(layers), num_blocks) if start == "stepwise" else range(num_blocks)
    return [layers[layer].double() for layer in chosen]


def factorize(residual: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the best U and A of a rank with U A near a matrix, in float64: `(out, r)` and `(r, in)`, r at most a side of it."""
    left, singular, right = torch.linalg.svd(residual.double(), full_matrices=False)
    return left[:, :rank] * singular[:rank], right[:rank]


@torch.no_grad()
def share_blocks(source: BlockStack, target: BlockStack, *, start: str) -> None:
    """Fill a recursive stack from a plain one with as many blocks as it has steps.

    Args:
        source: The plain stack.
        target: The recursive one, changed in place.
        start: How blocks begin (`shared_start`).

    Source:
        Relaxed Recursive Transformers, arXiv:2410.20672. There is no factor on U A, and norms differ per step if the plan says so.
    """
    layers, blocks = source.unwrapped, target.unwrapped
    for name, _ in blocks[0].named_parameters():
        values = [layer.get_parameter(name).detach() for layer in layers]
        shared = shared_start(values, len(blocks), start)
        for block, value in zip(blocks, shared, strict=True):
            block.get_parameter(name).copy_(value)
        for index, step in enumerate(target.plan.steps):
            wrapper = target[step.block]
            if not isinstance(wrapper, SharedBlock) or not step.differs:
                continue
            delta = wrapper.deltas[str(index)]
            assert isinstance(delta, ParameterDelta)
            if name in delta.names:
                _set_difference(delta, name, values[index].double() - shared[step.block])


def _set_difference(delta: ParameterDelta, name: str, residual: Tensor) -> None:
    if residual.ndim != 2:
        delta.vectors.get_parameter(name).copy_(residual)
        return
    up, down = delta.up.get_parameter(name), delta.down.get_parameter(name)
    left, right = factorize(residual, len(down))
    up.copy_(left)
    down.copy_(right)


def to_recursive(
    model: Any,
    *,
    loops: int,
    rank: int | Sequence[int] = 0,
    start: str = "average",
    vectors: str | None = None,
    parts: Sequence[str] = (),
) -> Any:
    """Return a model whose stacks run their blocks `loops` times, made from a trained one.

    Args:
        model: A model with plain stacks. It is not changed.
        loops: Number of loops; each stack has as many blocks as before over this.
        rank: Rank of every step's difference to its block, or one rank per step.
        start: How blocks begin: "average" suits ranks above 0, "stepwise" rank 0.
        vectors: "own" norms and biases for each step, "folded" into the matrices first, or "shared". None is "own" with a rank and
            "shared" without one.
        parts: Stacks to convert, e.g. "decoder", of models with several; none is all.

    Raises:
        ValueError: If a stack is not plain, its blocks are no multiple of `loops`, or an option does not fit.
    """
    if vectors is not None and vectors not in get_args(Vectors):
        raise ValueError(f"vectors is {vectors!r}, expected one of {get_args(Vectors)}")
    if start not in get_args(Start):
        raise ValueError(f"start is {start!r}, expected one of {get_args(Start)}")
    has_rank = bool(rank) if isinstance(rank, int) else any(rank)
    chosen = vectors or ("own" if has_rank else "shared")

    def plan_of(depth: int) -> DepthPlan:
        if loops < 1 or depth % loops:
            raise ValueError(f"loops is {loops}, expected a divisor of the {depth} blocks of the stack")
        ranks = [rank] * depth if isinstance(rank, int) else list(rank)
        if len(ranks) != depth or min(ranks) < 0:
            raise ValueError(f"rank is {rank}, expected one number, or one of each of the {depth} steps, none negative")
        steps = cycle(depth // loops, loops=loops).steps
        # Linear layers' biases cannot be folded: a step that differs keeps them for itself.
        return DepthPlan(
            tuple(
                dataclasses.replace(
                    step, rank=own, own_vectors=chosen == "own" or (chosen == "folded" and _has_biases(model))
                )
                for step, own in zip(steps, ranks, strict=True)
            )
        )

    made, pairs = _with_plans(model, plan_of, parts)
    for source, target in pairs:
        if chosen == "folded":
            source = copy.deepcopy(source)
            for block in source.unwrapped:
                fold_vectors(block)
        share_blocks(source, target, start=start)
    return made


def to_ladder(model: Any, *, last: int | None = None, parts: Sequence[str] = ()) -> Any:
    """Return a model with the same weights whose branches do not read the branch just before them.

    It is another function of the same weights, to be trained on.

    Args:
        model: A model with plain stacks. It is not changed.
        last: Number of blocks at the end of each stack that change; None is all.
        parts: Stacks to convert, e.g. "decoder"; none is all.

    Raises:
        ValueError: If a stack is not plain, or has fewer blocks.

    Source:
        Ladder-residual, arXiv:2501.06589.
    """
    made, pairs = _with_plans(model, lambda depth: ladder(depth, last=last), parts)
    for source, target in pairs:
        target.load_state_dict(source.state_dict())
    return made


def _has_biases(model: Any) -> bool:
    """Return whether blocks have vectors that folding leaves: biases of linear layers, norms of heads."""
    stacks = [stack for stack in model.modules() if isinstance(stack, BlockStack)]
    for block in (block for stack in stacks for block in stack.unwrapped):
        kind = type(block).__name__
        if any(
            p.ndim != 2 and name.partition(".")[0] not in _NORMS.get(kind, {}) for name, p in block.named_parameters()
        ):
            return True
    return False


def _with_plans(model: Any, plan_of: Any, parts: Sequence[str]) -> tuple[Any, list[tuple[BlockStack, BlockStack]]]:
    """Return a model of the same class whose chosen stacks have other plans, all else copied; and these stacks, old and new."""
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, BlockStack) and len(module)}
    named = {name: _part(name) for name in stacks}
    if unknown := sorted(set(parts) - set(named.values())):
        raise ValueError(
            f"parts holds {unknown[0]!r}, but the stacks of a {type(model).__name__} are {set(named.values())}"
        )
    chosen = {name: stack for name, stack in stacks.items() if not parts or named[name] in parts}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no stack of transformer blocks that takes a plan")
    entries: dict[str, Any] = {}
    for name, stack in chosen.items():
        if not stack.plan.is_plain:
            raise ValueError(f"the plan of {name} is not plain: convert the model that it was made from")
        plan, part = plan_of(len(stack)), named[name]
        size = next(
            key for key in (f"{part}_depth", f"{part.rpartition('_')[2]}_depth", "depth") if key in model.config
        )
        entries[size] = plan.num_blocks
        if part:
            entries["plan"] = {**(model.config["plan"] or {}), **entries.get("plan", {}), part: plan.to_json()}
        else:
            entries["plan"] = plan.to_json()
    known = inspect.signature(type(model).__init__).parameters
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    made = type(model)(**{**{name: value for name, value in config.items() if name in known}, **entries})
    made.register_to_config(**{name: value for name, value in config.items() if name not in known})
    made = (made if made.dtype == model.dtype else made.to(model.dtype)).train(model.training)
    rest = {
        name: value
        for name, value in model.state_dict().items()
        if not any(name.startswith(f"{stack}.") for stack in chosen)
    }
    made.load_state_dict({**made.state_dict(), **rest})
    return made, [(stack, made.get_submodule(name)) for name, stack in chosen.items()]


def _part(name: str) -> str:
    """Return what the config calls a stack of this dotted name: "encoder", "decoder", "encoder_tail"; nothing where it is the only one."""
    for segment in name.split("."):
        for part in ("encoder_tail", "encoder", "decoder"):
            if segment.startswith(part):
                return part
    return ""
