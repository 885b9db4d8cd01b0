from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hiergen.nn.running.checkpointing import CheckpointedModule


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
        return part(*inputs)

    x = torch.randn(2, 3)
    plain = stack(x)
    assert not calls
    stack.gradient_checkpointing, stack._gradient_checkpointing_func = True, recorded
    assert torch.equal(plain, stack(x))
    assert calls == [stack.part]
    with torch.no_grad():
        stack(x)
    assert len(calls) == 1
