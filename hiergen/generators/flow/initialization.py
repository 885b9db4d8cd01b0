"""How the flow transformer begins: as the identity with velocity zero."""

from __future__ import annotations

from typing import Any

from torch import nn

from hiergen.generators.conditioning import TextRows
from hiergen.nn.blocks.cross import RowReader
from hiergen.nn.blocks.transformer import ModulatedBlock
from hiergen.nn.initialization import xavier_linears


def init_flow_transformer(model: Any) -> None:
    """Draw the weights of a new `FlowTransformer`: every block starts as the identity, the velocity as zero."""
    xavier_linears(model)
    if isinstance(model.label_embed, nn.Embedding):
        nn.init.normal_(model.label_embed.weight, std=0.02)
    elif isinstance(model.label_embed, TextRows):
        model.label_embed.reset_parameters()
    for weight in (model.time_embed.linear1.weight, model.time_embed.linear2.weight):
        nn.init.normal_(weight, std=0.02)
    modulations = [module.modulation for module in model.modules() if isinstance(module, ModulatedBlock)]
    for module in model.modules():
        if isinstance(module, RowReader):
            module.close()
    for linear in (*modulations, model.final_modulation, model.final_linear):
        nn.init.zeros_(linear.weight)
