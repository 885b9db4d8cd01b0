from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hiergen.nn.checkpointing import CheckpointedModule


class Stack(CheckpointedModule):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.part, x)


def test_parts_go_through_the_function_only_where_gradients_are_kept() -> None:
    stack, calls = Stack(), []

    def recorded(part: nn.Module, *inputs: Any) -> Any:
        calls.append(part)
        return checkpoint(part, *inputs, use_reentrant=False)

    x = torch.randn(2, 3, requires_grad=True)
    (plain,) = torch.autograd.grad(stack(x).square().sum(), x)
    assert not calls
    stack.gradient_checkpointing, stack._gradient_checkpointing_func = True, recorded
    (again,) = torch.autograd.grad(stack(x).square().sum(), x)
    assert calls == [stack.part]
    assert torch.equal(plain, again)
    with torch.no_grad():
        stack(x)
    assert len(calls) == 1
