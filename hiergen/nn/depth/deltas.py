"""What belongs to single steps of a block that several steps share: differences to its parameters, projections, sliced attention.

A step with a difference runs the block with the parameters W + U A, vectors with v + d. The sums are made inside the module that holds
both, so that sharded training finds whole parameters there and gradient checkpointing makes them again.

Letters: `b` batch, `n` tokens, `d` channels, `r` rank.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import GeluMLP
from hiergen.nn.depth.plan import Step
from hiergen.nn.depth.sliced_attention import SlicedAttention
from hiergen.nn.running.precision import without_autocast


class ParameterDelta(nn.Module):
    """The difference of a step to its block: U A for every matrix, d for every other parameter.

    A is drawn from N(0, 1 / in) and everything else starts at zero, so that a new step equals its block. There is no scale (the alpha
    of LoRA): a converted model needs W + U A as it is.

    Args:
        block: The block; its names are those of `up`, `down` and `vectors`.
        rank: Rank of the matrices' differences, at most their own; 0 for none.
        own_vectors: Whether parameters that are no matrices differ too.
    """

    def __init__(self, block: nn.Module, rank: int, *, own_vectors: bool) -> None:
        super().__init__()
        self.up, self.down, self.vectors = nn.Module(), nn.Module(), nn.Module()
        self.names: list[str] = []
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2 and rank:
                size, width = parameter.shape
                capped = min(rank, size, width)
                _put(self.down, name, nn.Parameter(parameter.new_empty(capped, width).normal_(std=width**-0.5)))
                _put(self.up, name, nn.Parameter(parameter.new_zeros(size, capped)))
            elif parameter.ndim != 2 and own_vectors:
                _put(self.vectors, name, nn.Parameter(torch.zeros_like(parameter)))
            else:
                continue
            self.names.append(name)

    def added_to(self, block: nn.Module) -> dict[str, Tensor]:
        """Return the step's parameters by the names of the block's, those that differ only."""
        merged = {}
        for name in self.names:
            parameter = block.get_parameter(name)
            with without_autocast(parameter.device):
                if parameter.ndim == 2:
                    difference = self.up.get_parameter(name) @ self.down.get_parameter(name)
                else:
                    difference = self.vectors.get_parameter(name)
                merged[name] = parameter + difference
        return merged


def _put(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a name with dots."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, parameter)


class StepProjection(nn.Module):
    """x = c1 x + c2 MLP(LN(x)), with learned c1 and c2 that start at 1 and as many hidden channels as a token has.

    Source:
        Sliced Recursive Transformer, arXiv:2111.05297.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = GeluMLP(dim, dim)
        self.coefficients = nn.Parameter(torch.ones(2))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.coefficients[0] * x + self.coefficients[1] * self.mlp(self.norm(x))


class _Method(nn.Module):
    """A method of a block as a forward pass: `functional_call` knows no other."""

    def __init__(self, block: nn.Module, method: str) -> None:
        super().__init__()
        self.block, self.method = block, method

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return getattr(self.block, self.method)(*inputs, **options)


class SharedBlock(nn.Module):
    """A block and what its steps have of their own.

    Args:
        block: The block.
        steps: The steps that run it, by their index in the plan.
        dim: Channels of a token.
        num_tokens: Length of the sequence, for sliced attention.
    """

    def __init__(self, block: nn.Module, steps: Mapping[int, Step], *, dim: int, num_tokens: int | None) -> None:
        super().__init__()
        self.block = block
        deltas, projections, slices = {}, {}, {}
        for place, (index, step) in enumerate(steps.items()):
            if step.differs:
                deltas[str(index)] = ParameterDelta(block, step.rank, own_vectors=step.own_vectors)
            if step.project:
                projections[str(index)] = StepProjection(dim)
            if step.groups > 1 and num_tokens is not None:
                rng = torch.Generator().manual_seed(index) if place else None
                slices[str(index)] = SlicedAttention(num_tokens, step.groups, rng=rng)
        self.deltas, self.projections = nn.ModuleDict(deltas), nn.ModuleDict(projections)
        self.slices = nn.ModuleDict(slices)
        self._merged: dict[str, dict[str, Tensor]] | None = None

    def forward(self, x: Tensor, *inputs: Any, step: int, method: str = "forward", **options: Any) -> Tensor:
        """Return what the block makes of its inputs at a step.

        Args:
            x: The tokens.
            inputs: What else the block takes.
            step: Index of the step.
            method: The block's method that takes them; "project" is the step's projection instead.
            options: Keyword arguments of the block.
        """
        key = str(step)
        if method == "project":
            return self.projections[key](x)
        if key in self.slices:
            options["attend"] = functools.partial(self.slices[key], attend=options.get("attend", attention))
        parameters = self.parameters_of(step) if key in self.deltas else {}
        if method != "forward":
            named = {f"block.{name}": value for name, value in parameters.items()}
            return torch.func.functional_call(_Method(self.block, method), named, (x, *inputs), options)
        return torch.func.functional_call(self.block, parameters, (x, *inputs), options)

    def parameters_of(self, step: int) -> dict[str, Tensor]:
        """Return the parameters of a step that differ from the block's, by name."""
        if self._merged is not None and not torch.is_grad_enabled():
            return self._merged[str(step)]
        return self.deltas[str(step)].added_to(self.block)  # type: ignore[operator]

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, without gradients, the parameters of every step are those of the beginning: the sums are made once."""
        with torch.no_grad():
            self._merged = {key: delta.added_to(self.block) for key, delta in self.deltas.items()}  # type: ignore[operator]
        try:
            yield
        finally:
            self._merged = None
