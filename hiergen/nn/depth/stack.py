"""A stack of transformer blocks that runs by a plan. Letters: `b` batch, `n` tokens, `d` channels."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor, nn

from hiergen.nn.blocks.layers import Branch
from hiergen.nn.blocks.placed import SlotCache
from hiergen.nn.cache import LayerCache
from hiergen.nn.depth.deltas import SharedBlock
from hiergen.nn.depth.plan import DepthPlan, Step, plan_from_json
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.running.modes import evaluating

#: The plan of a stack as a model's config holds it.
PlanJson = Sequence[Mapping[str, Any]]


# Not checked at run time, as tests check the package: compilers make these inside of their graphs.
@no_type_check
@dataclasses.dataclass
class Stream:
    """What runs through a stack.

    Attributes:
        x: The tokens, without the branch that is pending.
        pending: Output of the last branch, if it is not added yet: a branch with lag 1 does not read it.
        entered: What entered the first step of blocks whose later steps inject it.
    """

    x: Tensor
    pending: Tensor | None = None
    entered: dict[int, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> Tensor:
        """The tokens with all branches so far."""
        return self.x if self.pending is None else self.x + self.pending

    def hold(self, rows: Tensor, held: Tensor) -> None:
        """Put `held` in the place of some samples' tokens.

        Args:
            rows: True for these samples, `(b,)`.
            held: Tokens of all samples.
        """
        self.x = torch.where(rows[:, None, None], held, self.x)
        if self.pending is not None:
            self.pending = self.pending.masked_fill(rows[:, None, None], 0)

    def settle(self) -> Tensor:
        """Add what is pending and return the tokens."""
        self.x, self.pending = self.whole, None
        return self.x


class BlockStack(nn.ModuleList, CheckpointedModule):
    """Blocks, and the plan by which they run.

        lag 0:  x = x + pending;  pending = branch(x)            lag 1:  pending, x = branch(x), x + pending

    By the plain plan it is the list of blocks, whose parameters have the names of an `nn.ModuleList`. If any step has something of its
    own (a difference, a projection, slices), all blocks are wrapped: `0.block.*`, `0.deltas.STEP.*`, `0.projections.STEP.*`.

    Args:
        blocks: The blocks.
        plan: The steps as JSON; None is every block once.
        dim: Channels of a token, for projections.
        num_tokens: Length of the sequence where every token sees every other, for sliced attention; None allows no slices.
        name: What messages call the plan.

    Raises:
        ValueError: If the plan does not fit the blocks: their number, branches that cannot run alone, or slices that are not allowed.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        plan: PlanJson | None = None,
        *,
        dim: int = 0,
        num_tokens: int | None = None,
        name: str = "plan",
    ) -> None:
        made = list(blocks)
        # Stacks without blocks, of models that have only convolutions on a side, have no steps either.
        self.plan = plan_from_json(plan, len(made), name) if made else DepthPlan((Step(0),))
        options = {option for block in made for option in inspect.signature(block.forward).parameters}
        for index, step in enumerate(self.plan.steps):
            if step.lag and "only" not in options:
                raise ValueError(f"step {index} of {name} has lag 1, which {type(made[0]).__name__} cannot run with")
            if step.groups > 1 and (num_tokens is None or "attend" not in options):
                raise ValueError(
                    f"step {index} of {name} has {step.groups} groups, expected 1: "
                    "slices need blocks that take their attention as an argument, and tokens that all see each other"
                )
        if any(step.differs or step.project or step.groups > 1 for step in self.plan.steps):
            made = [
                SharedBlock(block, self._steps_of(number), dim=dim, num_tokens=num_tokens)
                for number, block in enumerate(made)
            ]
        super().__init__(made)
        self._is_plain = self.plan.is_plain
        self._injected = {step.block for step in self.plan.steps if step.inject}

    @property
    def num_steps(self) -> int:
        """Number of steps; a cache of keys and values belongs to each."""
        return len(self.plan.steps) if len(self) else 0

    @property
    def unwrapped(self) -> list[Any]:
        """The blocks themselves."""
        return [block.block if isinstance(block, SharedBlock) else block for block in self]

    @property
    def is_sliced(self) -> bool:
        """Whether any step mixes inside groups alone."""
        return any(step.groups > 1 for step in self.plan.steps)

    def _steps_of(self, block: int) -> dict[int, Step]:
        return {index: step for index, step in enumerate(self.plan.steps) if step.block == block}

    def forward(
        self,
        x: Tensor,
        *inputs: Any,
        caches: Sequence[LayerCache | SlotCache] | None = None,
        each: Sequence[Any] | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the tokens after all steps.

        Args:
            x: The tokens.
            inputs: What every block takes beside them.
            caches: Keys and values of earlier tokens, one cache for each *step*.
            each: What the block of every step takes as its first input, before `inputs`.
            options: Keyword arguments of every block.
        """
        stream, plain_blocks = Stream(x), iter(self)
        for index in range(self.num_steps):
            own = inputs if each is None else (each[index], *inputs)
            if caches is not None:
                options["cache"] = caches[index]
            if self._is_plain:
                # What `advance` comes to, without its questions: a step of generation is short.
                stream.x = self.run(functools.partial(next(plain_blocks), **options), stream.x, *own)
            else:
                self.advance(stream, index, *own, **options)
        return stream.settle()

    def call_at(self, index: int, method: str, *inputs: Any) -> Any:
        """Return what another method than `forward` of the block of a step gives, with the step's own parameters."""
        block = self[self.plan.steps[index].block]
        if isinstance(block, SharedBlock):
            return block(*inputs, step=index, method=method)
        return getattr(block, method)(*inputs)

    def at_exits(self, x: Tensor, *inputs: Any, **options: Any) -> list[Tensor]:
        """Return the tokens at every exit of the plan, those of the last step last; the arguments are those of `forward`."""
        stream, found = Stream(x), []
        for index in range(self.num_steps):
            self.advance(stream, index, *inputs, **options)
            if index in self.plan.exits:
                found.append(stream.whole)
        return found

    def advance(
        self,
        stream: Stream,
        index: int,
        *inputs: Any,
        branches: Sequence[Branch] = ("attention", "ffn"),
        **options: Any,
    ) -> None:
        """Run one step of the plan on a stream.

        Args:
            stream: What runs through the stack, changed in place.
            index: Index of the step.
            inputs: What the block takes beside the tokens.
            branches: Branches that run.
            options: Keyword arguments of the block.
        """
        step = self.plan.steps[index]
        if step.inject:
            stream.x = stream.x + stream.entered[step.block]
        elif step.block in self._injected and self.plan.is_first(index):
            stream.entered[step.block] = stream.whole
        block = self[step.block]
        call = functools.partial(block, step=index) if isinstance(block, SharedBlock) else block
        following = self.plan.steps[index + 1 : index + 2]
        if not step.lag and not any(other.lag for other in following) and len(branches) == 2:
            stream.x = self.run(functools.partial(call, **options), stream.settle(), *inputs)
        else:
            # Where the next step lags, it misses this one's feed-forward branch.
            for only in branches:
                read = stream.x if step.lag else stream.settle()
                branch = self.run(functools.partial(call, only=only, **options), read, *inputs)
                # Adding what is pending comes after the branch is computed: a reduction may still be under way.
                stream.settle()
                stream.pending = branch
        if step.project:
            stream.x = self.run(functools.partial(call, method="project"), stream.settle())

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, without gradients, the differences of all steps are added to their blocks once and not at every pass."""
        with contextlib.ExitStack() as stack:
            for block in self:
                if isinstance(block, SharedBlock):
                    stack.enter_context(block.merged())
            yield


@contextlib.contextmanager
def generating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode inside the context, and add the differences of its steps to their blocks once and not at every pass."""
    stacks = [module for module in model.modules() if isinstance(module, BlockStack)]
    with evaluating(model), contextlib.ExitStack() as contexts:
        for stack in stacks:
            contexts.enter_context(stack.merged())
        yield
