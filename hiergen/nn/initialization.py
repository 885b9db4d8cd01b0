"""Weight initialization that several models share."""

from __future__ import annotations

from torch import nn


def init_truncated_normal(module: nn.Module, *, std: float = 0.02) -> None:
    """Draw the weights of all linear and convolutional layers inside `module`, and set their biases to 0.

    Args:
        module: Module whose layers are changed in place.
        std: Standard deviation; values beyond ±2 (absolute, so practically none) are drawn again.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2.0, b=2.0)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def xavier_linears(*modules: nn.Module) -> None:
    """Initialize every linear layer of some modules: Xavier uniform (a fused projection as one matrix), zero biases."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
