"""Initial weights of `NextScaleAR`: narrow normals, branches that begin almost closed, and a head that begins almost flat."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hiergen.generators.conditioning import ClassPathEmbedding, TextRows

#: Factor of the initial weights that make scales and shifts.
_MODULATION = 0.5
_HEAD = 0.02


@torch.no_grad()
def init_weights(model: Any, *, gate_init: float) -> None:
    """Draw all weights of a `NextScaleAR` but those of its quantizer.

    Args:
        model: The generator, changed in place.
        gate_init: Factor of the weights that make the gates.

    Source:
        VAR, arXiv:2404.02905, official program.
    """
    dim, depth = model.config["dim"], len(model.blocks)
    std = (1 / (3 * dim)) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2, b=2)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for table in (model.start_embedding, model.position_embedding):
        nn.init.trunc_normal_(table, std=std, a=-2, b=2)
    if isinstance(model.class_embedding, ClassPathEmbedding | TextRows):
        model.class_embedding.reset_parameters()
    model.head.weight.mul_(_HEAD)
    model.head_modulation.weight.mul_(_MODULATION)
    for block in model.blocks.unwrapped:
        for layer in (block.attention.proj, block.ffn.fc2):
            layer.weight.div_((2 * depth) ** 0.5)
        if block.cross is not None:
            block.cross.close()
        if block.modulation is None:
            nn.init.normal_(block.modulation_offset, std=dim**-0.5)
        # The gates are the first two sixths.
        gates, others = (block.modulation_offset if block.modulation is None else block.modulation.weight).split(
            (2 * dim, 4 * dim)
        )
        gates.mul_(gate_init)
        others.mul_(_MODULATION)
