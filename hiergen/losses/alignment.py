"""Losses that align a tokenizer's features with those of a frozen teacher; the teachers are in `hiergen.pretrained.teachers`.

Letters: `b` batch, `n` positions, `d` channels of the teacher.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hiergen.nn.running.precision import widen, without_autocast


def cosine_hinge_loss(
    features: Float[Tensor, "*positions d"], teacher: Float[Tensor, "*positions d"], *, margin: float
) -> Float[Tensor, ""]:
    """Return the mean of relu(1 - margin - cosine) over positions: what is aligned well enough costs nothing.

    Source:
        VA-VAE, arXiv:2501.01423, "marginal cosine similarity loss"; ResTok, arXiv:2601.03955, with margin 0.25.
    """
    features, teacher = widen(features), widen(teacher)
    return F.relu(1 - margin - F.cosine_similarity(features, teacher, dim=-1)).mean()


def distance_matrix_loss(
    features: Float[Tensor, "b n d"], teacher: Float[Tensor, "b n d"], *, margin: float
) -> Float[Tensor, ""]:
    """Return the mean of relu(|cos(features_i, features_j) - cos(teacher_i, teacher_j)| - margin) over all pairs of positions.

    Source:
        VA-VAE, arXiv:2501.01423, "marginal distance matrix similarity loss".
    """
    with without_autocast(features.device):
        features, teacher = (F.normalize(widen(x), dim=-1) for x in (features, teacher))
        difference = features @ features.transpose(1, 2) - teacher @ teacher.transpose(1, 2)
        return F.relu(difference.abs() - margin).mean()
