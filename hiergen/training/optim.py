"""Parameter groups and the learning rate as a function of samples seen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hiergen.checked import Checked, CountOrZero, NotNegative, Positive, Range, Share

if TYPE_CHECKING:
    import torch
    from torch import nn

#: A parameter whose name contains one of these is not decayed (ResTok's list, spec of arXiv:2601.03955; in timm's spirit). The source's
#: codebook is an "embedding"; ours has its own name.
NO_DECAY = (
    "ln",
    "bias",
    "latent_tokens",
    "mask_token",
    "embedding",
    "norm",
    "gamma",
    "embed",
    "codebook",
    "mask_latent_token",
    "rope",
    "freqs_cis",
)


_Beta = Annotated[float, Range(0, 1, excludes_high=True)]


@dataclasses.dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW or Muon, with linear warm-up and a schedule.

    Attributes:
        name: "adamw"; or "muon", which steps the matrices that AdamW decays (so no embeddings) by Muon, and all else by AdamW, with one
            learning rate. It cannot train parameters that are shared out.
        momentum: Decay of Muon's momentum.
        lr: Peak learning rate.
        betas: Decay of AdamW's two moments.
        eps: Number added to the root of the second moment.
        weight_decay: Decoupled weight decay of all parameters but biases, norms, embeddings and the like, and those that `no_decay` names.
        no_decay: Further parts of names of parameters without weight decay.
        warmup_samples: Number of samples over which the learning rate rises linearly from 0.
        schedule: Learning rate after warm-up: "cosine" falls to `lr * final_lr_ratio` at the end of the run, "linear" stays for a twentieth
            of the rest and then falls to it evenly, "constant" stays.
        final_lr_ratio: Learning rate at the end of a cosine or linear schedule, as a share of `lr`.
        clip_norm: Largest norm of each player's gradient; None for no clipping.
    """

    name: Literal["adamw", "muon"] = "adamw"
    momentum: _Beta = 0.95
    lr: NotNegative = 1e-4
    betas: tuple[_Beta, _Beta] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NotNegative = 1e-4
    no_decay: tuple[str, ...] = ()
    warmup_samples: CountOrZero = 0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr_ratio: Share = 0.1
    clip_norm: Positive | None = 1.0


def decays(name: str, parameter: nn.Parameter, *, exempt: tuple[str, ...] = ()) -> bool:
    """Return whether weight decay applies: matrices and convolutions with no part of `NO_DECAY` or `exempt` in their name."""
    return parameter.ndim >= 2 and not any(part in name for part in NO_DECAY + exempt)


def make_optimizer(
    module: nn.Module, config: OptimConfig, *, multipliers: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Return AdamW, or Muon, over the trainable parameters, in groups: decayed and not, and these two for each factor of the learning rate.

    Args:
        module: The module.
        config: Settings of the optimizer.
        multipliers: Factors of the learning rate by the first parts of parameters' dotted names; what none names keeps the rate. A group
            with a factor carries it as "multiplier", for the one who sets the rates.
    """
    # Settings are read, and help is shown, without PyTorch.
    import torch

    from hiergen.training.muon import Muon

    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    exempt = config.no_decay
    factors = {name: _factor(name, multipliers or {}) for name, _ in trainable}
    groups: list[dict[str, Any]] = []
    for factor in sorted(set(factors.values())):
        own = [(name, p) for name, p in trainable if factors[name] == factor]
        extra = {} if factor == 1 else {"multiplier": factor, "lr": config.lr * factor}
        decayed = [p for name, p in own if decays(name, p, exempt=exempt)]
        others = [p for name, p in own if not decays(name, p, exempt=exempt)]
        if config.name == "muon":
            matrices = [p for p in decayed if p.ndim == 2]
            decayed = [p for p in decayed if p.ndim > 2]
            groups.append(
                {"params": matrices, "weight_decay": config.weight_decay, "momentum": config.momentum, **extra}
            )
        groups += [
            {"params": decayed, "weight_decay": config.weight_decay, **extra},
            {"params": others, "weight_decay": 0.0, **extra},
        ]
    # Fused, because only the fused step takes `found_inf`: a bad step is skipped on the device, without asking the host.
    kind = Muon if config.name == "muon" else torch.optim.AdamW
    return kind(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def _factor(name: str, multipliers: Mapping[str, float]) -> float:
    return next((factor for part, factor in multipliers.items() if f"{name}.".startswith(f"{part}.")), 1.0)


def learning_rate(optim: OptimConfig, samples_seen: int, *, batch_size: int, samples: int, start: int = 0) -> float:
    """Return the learning rate of the step that starts after `samples_seen` samples.

    Args:
        optim: The schedule.
        samples_seen: Position in the run.
        batch_size: Samples per step.
        samples: Samples of the whole run, where the schedule ends.
        start: Samples before the player's first step, where its schedule begins.
    """
    seen = samples_seen - start
    if seen < optim.warmup_samples:
        return optim.lr * (seen + batch_size) / (optim.warmup_samples + batch_size)
    if optim.schedule == "constant":
        return optim.lr
    span = max(1, samples - start - optim.warmup_samples)
    progress = min(1.0, (seen - optim.warmup_samples) / span)
    low = optim.lr * optim.final_lr_ratio
    if optim.schedule == "linear":
        # The rule by which VAR was trained, arXiv:2404.02905.
        return low + (optim.lr - low) * min(1.0, (1 - progress) / 0.95)
    return low + (optim.lr - low) * 0.5 * (1 + math.cos(math.pi * progress))
