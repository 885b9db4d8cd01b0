"""The end of a step: gradients are clipped, and players updated by those that are finite, without asking the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hiergen.training.processes.sharding import whole


@dataclasses.dataclass(frozen=True)
class Update:
    """A player that is to be updated.

    Attributes:
        name: Of the player.
        module: Holds its gradients.
        optimizer: A fused one, which leaves weights and moments alone where its `found_inf` is 1.
        clip_norm: Largest norm of its gradient; None for any.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    clip_norm: float | None


def take_steps(
    updates: Sequence[Update], losses: Sequence[Tensor], accelerator: Accelerator
) -> tuple[dict[str, Tensor], Tensor]:
    """Take the players' steps, except from gradients that are not finite.

    Args:
        updates: The players, in their order.
        losses: The step's losses, scalars.
        accelerator: Holds the scaler, in float16.

    Returns:
        The norms of the gradients by player, before clipping, and whether a player's step was skipped, all scalars on the device. In
        float16 those do not count that a smaller scale mends.
    """
    scaler, device = accelerator.scaler, accelerator.device
    norms = {}
    for update in updates:
        # All players' before any step, which may change the scale: Accelerate's own clipping would divide the second one's twice.
        if scaler is not None:
            scaler.unscale_(update.optimizer)
        parameters = [p for p in update.module.parameters() if p.grad is not None]
        limit = float("inf") if update.clip_norm is None else update.clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        norms[update.name] = whole(torch.as_tensor(norm, device=device).detach())
    bad = ~torch.isfinite(torch.stack(list(norms.values())))
    for update, is_bad in zip(updates, bad, strict=True):
        optimizer = update.optimizer
        if scaler is None:
            optimizer.found_inf, optimizer.grad_scale = is_bad.float(), None  # type: ignore[attr-defined]
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    is_skipped = bad.any()
    if scaler is not None:
        # That a scaler finds its scale by steps that it skips is no fault, so long as losses are finite and the scale can be lowered.
        is_lost = (~torch.isfinite(torch.stack(list(losses)))).any().float()
        is_least = scaler.scale(torch.ones((), device=device)) <= 1
        is_skipped &= is_least | (cast(Tensor, accelerator.reduce(is_lost, reduction="max")) > 0)
        scaler.update()
    return norms, is_skipped
