"""Losses that align a tokenizer's features with those of a frozen teacher.

Letters: `b` batch, `n` positions, `d` channels of the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.precision import without_autocast
from hiergen.pretrained.teachers import timm_network


def cosine_hinge_loss(
    features: Float[Tensor, "*positions d"], teacher: Float[Tensor, "*positions d"], *, margin: float
) -> Float[Tensor, ""]:
    """Return the mean of relu(1 - margin - cosine) over positions: what is aligned well enough costs nothing.

    Source:
        VA-VAE, arXiv:2501.01423, "marginal cosine similarity loss"; ResTok, arXiv:2601.03955, with margin 0.25.
    """
    features, teacher = _wide(features), _wide(teacher)
    return F.relu(1 - margin - F.cosine_similarity(features, teacher, dim=-1)).mean()


def distance_matrix_loss(
    features: Float[Tensor, "b n d"], teacher: Float[Tensor, "b n d"], *, margin: float
) -> Float[Tensor, ""]:
    """Return the mean of relu(|cos(features_i, features_j) - cos(teacher_i, teacher_j)| - margin) over all pairs of positions.

    Source:
        VA-VAE, arXiv:2501.01423, "marginal distance matrix similarity loss".
    """
    with without_autocast(features.device):
        features, teacher = (F.normalize(_wide(x), dim=-1) for x in (features, teacher))
        difference = features @ features.transpose(1, 2) - teacher @ teacher.transpose(1, 2)
        return F.relu(difference.abs() - margin).mean()


class PatchTeacher(nn.Module):
    """A frozen vision transformer of timm: images to one feature a patch.

    The defaults are VA-VAE's DINOv2-L/14 on 224 x 224 pixels, hence a 16 x 16 map. As there, images go in as they are, in [-1, 1],
    not in the teacher's own normalization.

    Args:
        name: Model name in timm.
        weights: File of its weights; None takes timm's cache or download; "random" for tests.
        image_size: Side to which images are resized; the map has `image_size / patch` tokens along each side.
        options: Of the model in timm.

    Raises:
        FileNotFoundError: If the weights are nowhere.
        ImportError: If timm is not installed.
    """

    def __init__(
        self,
        name: str = "vit_large_patch14_dinov2.lvd142m",
        weights: str | Path | None = None,
        *,
        image_size: int = 224,
        **options: Any,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.model: Any = timm_network(name, weights, dynamic_img_size=True, **options)
        self.dim: int = self.model.embed_dim
        self.model.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PatchTeacher:
        """Stay in eval mode, whatever the model around does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Return the features of the patches, row-major, class and register tokens left out."""
        size = (self.image_size, self.image_size)
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        return self.model.forward_features(resized)[:, self.model.num_prefix_tokens :]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
