"""How H-Net starts."""

from __future__ import annotations

import math

from torch import nn

from hiergen.generators.sequences.hnet.stages import Stage

_STD = 0.02


def initialize(stages: list[Stage], *, has_zero_residual: bool) -> None:
    """Draw the weights of nested stages, outer ones first.

    Linear layers are drawn from N(0, 0.02²); those that add to the stream from N(0, 0.02² / n), n being the number of additions in this
    stage and all around it. Routers start as the identity, so that similar neighbors are in one chunk; residual weights at 0.

    Args:
        stages: The stages.
        has_zero_residual: Start the biases of the residuals at 0 too. Otherwise they keep PyTorch's U(±1/sqrt(d)), as in the released
            program.
    """
    additions = 0
    for stage in stages:
        stacks = [stack for stack in (stage.encoder, stage.decoder) if stack is not None]
        additions += sum(stack.num_additions for stack in stacks)
        for stack in stacks:
            for name, layer in stack.named_modules():
                if isinstance(layer, nn.Linear):
                    is_last = name.endswith((".out_proj", ".out", ".down"))
                    nn.init.normal_(layer.weight, std=_STD / math.sqrt(additions) if is_last else _STD)
        if stage.decoder is not None:
            nn.init.eye_(stage.router.query.weight)
            nn.init.eye_(stage.router.key.weight)
            nn.init.zeros_(stage.residual.weight)
            if has_zero_residual:
                nn.init.zeros_(stage.residual.bias)
