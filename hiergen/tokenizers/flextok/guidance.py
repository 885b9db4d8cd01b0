"""Adaptive projected guidance: what guidance adds is damped, bounded in length, and cannot push along the prediction itself.

Letters: `b` batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: Share of the sum so far that is added to each new difference; negative, so differences that repeat themselves are damped.
_MOMENTUM = -0.5
#: The longest difference of a sample that acts.
_MOST = 2.5


class ProjectedGuidance:
    """Guidance over the steps of one generation.

    With m the running sum m <- (conditional - null) - 0.5 m, and d = m min(1, 2.5 / |m|), the guided prediction is
    conditional + (scale - 1) d', where d' is d without its part along the conditional prediction. Lengths are those of a whole sample.

    Source:
        Adaptive projected guidance, arXiv:2410.02416, with the numbers of FlexTok, arXiv:2502.13967.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def __call__(
        self, conditional: Float[Tensor, "b ..."], null: Float[Tensor, "b ..."], scale: float
    ) -> Float[Tensor, "b ..."]:
        """Return the guided prediction of the next step."""
        difference = (conditional - null).flatten(1)
        self._sum = difference if self._sum is None else difference + _MOMENTUM * self._sum
        # A sum of zero stays zero: its length must not divide.
        length = self._sum.norm(dim=1, keepdim=True).clamp(min=torch.finfo(self._sum.dtype).tiny)
        bounded = (self._sum * (_MOST / length).clamp(max=1)).double()
        along = torch.nn.functional.normalize(conditional.flatten(1).double(), dim=1)
        across = bounded - (bounded * along).sum(dim=1, keepdim=True) * along
        return conditional + (scale - 1) * across.to(conditional.dtype).view_as(conditional)
