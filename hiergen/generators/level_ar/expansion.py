"""Chain expansion: a trained `LevelAR` as the first chain of a wider one."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from hiergen.generators.level_ar.model import LevelAR
from hiergen.nn.depth.chains import ChainLinear, ChainNorm


@torch.no_grad()
def to_chains(model: LevelAR, added: Sequence[int], *, share_kv: bool = False) -> LevelAR:
    """Return a model of several chains whose first one is `model`, and whose logits are those of `model`.

    The head's columns for the new chains are zero; everything else in them is drawn.

    Args:
        model: A trained model without chains. It is not changed.
        added: Heads of each new chain. Width and hidden size grow in proportion.
        share_kv: As in `LevelAR`; only False keeps the logits, since a trained model's heads have keys of their own.

    Raises:
        ValueError: If the model has chains, its classes are paths, its plan is not plain, or the sizes cannot grow so.

    Source:
        Chain-of-Model, arXiv:2505.11820.
    """
    config: dict[str, Any] = {name: value for name, value in model.config.items() if not name.startswith("_")}
    if config["chains"] is not None or config["class_hierarchy"] is not None or not model.blocks.plan.is_plain:
        raise ValueError("the model has chains, a class_hierarchy or a plan, expected none of them")
    if share_kv:
        raise ValueError("share_kv is True, expected False: a trained model's heads have keys and values of their own")
    if not added or min(added) < 1:
        raise ValueError(f"added is {list(added)}, expected the heads of at least one chain")
    heads, hidden = config["num_heads"], model.blocks.unwrapped[0].ffn.gate.out_features
    total = heads + sum(added)
    if any(size * total % heads or size * part % heads for size in (config["dim"], hidden) for part in added):
        raise ValueError(
            f"added is {list(added)}, which does not divide {config['dim']} and {hidden} channels by {heads} heads"
        )
    known = inspect.signature(type(model).__init__).parameters
    sizes = {
        "dim": config["dim"] * total // heads,
        "num_heads": total,
        "ffn_dim": hidden * total // heads,
        "chains": [heads, *added],
    }
    made = type(model)(**{**{name: value for name, value in config.items() if name in known}, **sizes})
    made.register_to_config(**{name: value for name, value in config.items() if name not in known})
    made.head.weight.zero_()
    source = dict(model.named_parameters())
    parts = {f"{name}.weight": layer.parts for name, layer in made.named_modules() if isinstance(layer, ChainLinear)}
    for name, parameter in made.named_parameters():
        count = parts.get(name, 1)
        mine, theirs = parameter.unflatten(0, (count, -1)), source[name].unflatten(0, (count, -1))
        mine[tuple(slice(size) for size in theirs.shape)] = theirs
    return made.train(model.training)


def freeze_first_chains(model: LevelAR, count: int) -> None:
    """Let no gradient change the first chains from now on: train the later ones alone, without weight decay.

    Gradients are cut by hooks on whole parameters, so this does not go together with sharded training.

    Args:
        model: A model in chains, changed in place.
        count: Number of chains that stay as they are.

    Raises:
        ValueError: If the model has not more chains than that.
    """
    chains = model.config["chains"] or ()
    if not 0 < count < len(chains):
        raise ValueError(f"count is {count}, expected 1 to {len(chains) - 1}, fewer than the model's chains")
    ends = {id(layer.weight): layer for layer in model.modules() if isinstance(layer, (ChainLinear, ChainNorm))}
    width = list(itertools.accumulate(chains))[count - 1] * model.config["dim"] // model.config["num_heads"]
    for name, parameter in model.named_parameters():
        keep = torch.ones_like(parameter)
        layer = ends.get(id(parameter))
        if isinstance(layer, ChainLinear):
            keep.unflatten(0, (layer.parts, -1))[:, : layer.outs[count - 1]] = 0
        elif name.endswith("key_value.weight"):
            keep.zero_()
        else:
            # Tables and the head hold the chains as columns, norms as their only dimension.
            keep[..., :width] = 0
        parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
