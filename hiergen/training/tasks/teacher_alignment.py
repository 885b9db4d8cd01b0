"""Alignment of a tokenizer's features with a frozen teacher's. Nothing of it is part of the tokenizer that is saved."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from hiergen.losses.alignment import cosine_hinge_loss
from hiergen.pretrained.teachers import Teacher
from hiergen.pretrained.weights import Frozen
from hiergen.training.tasks.term_settings import AlignmentConfig


class Alignment(nn.Module):
    """The trained projections of a tokenizer's features to a teacher's channels; the teacher itself is no submodule.

    Args:
        config: Settings of the terms.
        tokenizer: The tokenizer whose features are aligned; its config tells their width.

    Raises:
        ValueError: If the tokenizer returns no features for a term.

    Source:
        ResTok, arXiv:2601.03955.
    """

    def __init__(self, config: AlignmentConfig, tokenizer: Any) -> None:
        super().__init__()
        if config.decoder_weight and not tokenizer.config.get("decoder_features", False):
            raise ValueError(
                f"decoder_weight is {config.decoder_weight}, but the tokenizer has no decoder features: "
                "set overrides={'decoder_features': True}, or decoder_weight=0"
            )
        teacher = Teacher(config.teacher, config.weights, **config.options)
        self._config = config
        self._teacher = Frozen(teacher)
        sides = [side for side in ("encoder", "decoder") if getattr(config, f"{side}_weight")]
        self.projections = nn.ModuleDict(
            {side: nn.Linear(tokenizer.config[f"{side}_dim"], teacher.dim, bias=False) for side in sides}
        )

    def forward(self, images: Tensor, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms "align_encoder" and "align_decoder", unweighted, as far as they have a weight."""
        summary, patches = cast(Teacher, self._teacher.on(images.device))(images)
        terms = {}
        if "encoder" in self.projections:
            mean = self.projections["encoder"](features["encoder"]).float().mean(dim=1)
            terms["align_encoder"] = cosine_hinge_loss(mean, summary, margin=self._config.encoder_margin)
        if "decoder" in self.projections and "decoder" in features:
            projected = self.projections["decoder"](features["decoder"])
            target = _match_grid(patches, projected.shape[1])
            terms["align_decoder"] = cosine_hinge_loss(projected, target, margin=self._config.decoder_margin)
        return terms


def _match_grid(patches: Tensor, count: int) -> Tensor:
    """Return a square map of `count` positions: the same, or bilinearly resized where the tokenizer's grid differs."""
    if patches.shape[1] == count:
        return patches
    old, new = round(patches.shape[1] ** 0.5), round(count**0.5)
    maps = patches.transpose(1, 2).unflatten(2, (old, old))
    resized = F.interpolate(maps, size=(new, new), mode="bilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)
