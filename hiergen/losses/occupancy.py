"""The losses of a shape tokenizer: occupancy at points in space, and near the surface.

Letters: `b` batch, `p` points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hiergen.nn.running.precision import widen


def occupancy_loss(logits: Float[Tensor, "b p"], labels: Bool[Tensor, "b p"]) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of occupancy logits, in nats, averaged over points and shapes.

    Args:
        logits: Positive inside.
        labels: True inside.
    """
    wide = widen(logits)
    return F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype))


@torch.no_grad()
def occupancy_iou(
    logits: Float[Tensor, "b p"], labels: Bool[Tensor, "b p"], *, level: float = 0.0
) -> Float[Tensor, " b"]:
    """Return each shape's intersection over union of `logits > level` with the labels; 1 where both are empty.

    Over uniform points this estimates the volume IoU; over points near the surface it has no such meaning.
    """
    inside = logits > level
    intersection = (inside & labels).sum(dim=1).float()
    union = (inside | labels).sum(dim=1).float()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def shape_tokenizer_losses(
    logits: Mapping[str, Float[Tensor, "b p"]],
    labels: Bool[Tensor, "b p"] | Mapping[str, Bool[Tensor, "b p"]],
    bottleneck_losses: Mapping[str, Tensor],
    *,
    num_near: int = 0,
    near_weight: float = 1.0,
) -> dict[str, Tensor]:
    """Return the terms of a training step of a shape tokenizer; "loss" is what to minimize.

    Every level is a whole shape and counts the same: loss = mean over levels of (volume + near_weight * near) + bottleneck terms.

    Args:
        logits: Logits of each level by name, as in `PyramidVAE.forward(...).features`: at points in the volume first, then at those
            near the surface.
        labels: True inside; given by level where the levels hold different samples.
        bottleneck_losses: Weighted terms by name: `PyramidVAE.forward(...).losses`.
        num_near: Number of points near the surface, the last ones.
        near_weight: Weight of the points near the surface. Michelangelo and 3DShape2VecSet take 0.1, with as many near points as in the volume.

    Returns:
        "loss" and the bottleneck terms with gradients; for the log, averaged over levels and detached: "bce_volume",
        "bce_near" if there are near points, "accuracy"; and for every level "iou_<name>" over the volume points.

    Raises:
        ValueError: If there is no level, or no volume point is left.

    Source:
        MAR-3D, arXiv:2503.20519, section 3.1: cross-entropy and KL divergence. It leaves the weighting of near points open.
    """
    if not logits:
        raise ValueError("logits holds no level, expected at least one")
    of_level = dict.fromkeys(logits, labels) if isinstance(labels, Tensor) else dict(labels)
    if of_level.keys() != logits.keys():
        raise ValueError(f"labels are for {list(of_level)}, expected {list(logits)}, the levels of logits")
    num_points = next(iter(of_level.values())).shape[1]
    num_volume = num_points - num_near
    if num_near < 0 or num_volume < 1:
        raise ValueError(f"num_near is {num_near} of {num_points} points, expected 0 to {num_points - 1}")
    pairs = [(x, of_level[name]) for name, x in logits.items()]

    def mean_loss(part: slice) -> Tensor:
        return torch.stack([occupancy_loss(x[:, part], y[:, part]) for x, y in pairs]).mean()

    total = mean_loss(slice(num_volume))
    terms = {"bce_volume": total.detach()}
    if num_near:
        near = mean_loss(slice(num_volume, None))
        terms["bce_near"] = near.detach()
        total = total + near_weight * near
    terms |= bottleneck_losses
    for loss in bottleneck_losses.values():
        total = total + loss
    terms["accuracy"] = torch.stack([((x > 0) == y).float().mean() for x, y in pairs]).mean()
    for name, x in logits.items():
        terms[f"iou_{name}"] = occupancy_iou(x[:, :num_volume], of_level[name][:, :num_volume]).mean()
    return {"loss": total, **terms}
