"""Attention inside groups of the sequence. Letters: `b` batch, `h` heads, `n` tokens, `k` channels of a head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import AttendFn


class SlicedAttention(nn.Module):
    """Attention whose tokens see those of their own group alone: runs of the sequence, or of a fixed permutation of it.

    Args:
        num_tokens: Length of the sequence.
        groups: Number of groups, all of one size.
        rng: Source of the permutation; None groups neighbors. It is drawn once and saved, so that the same input has the same output.

    Raises:
        ValueError: If the sequence cannot be cut into so many groups of one size.

    Source:
        Sliced Recursive Transformer, arXiv:2111.05297. Its program draws a new permutation in every pass.
    """

    order: Tensor | None

    def __init__(self, num_tokens: int, groups: int, *, rng: torch.Generator | None = None) -> None:
        super().__init__()
        if groups < 1 or num_tokens % groups:
            raise ValueError(f"groups is {groups}, expected a divisor of the {num_tokens} tokens of the sequence")
        self.num_tokens, self.groups = num_tokens, groups
        order = None if rng is None else torch.randperm(num_tokens, generator=rng, device="cpu")
        self.register_buffer("order", order)

    def forward(
        self,
        query: Float[Tensor, "b h n k"],
        key: Float[Tensor, "b h n k"],
        value: Float[Tensor, "b h n k"],
        *,
        attend: AttendFn = attention,
    ) -> Float[Tensor, "b h n k"]:
        """Return the attended tokens, in the order in which they came.

        Args:
            query: Queries.
            key: Keys.
            value: Values.
            attend: Attention inside a group.

        Raises:
            ValueError: If the sequence has another length.
        """
        if query.shape[2] != self.num_tokens:
            raise ValueError(
                f"the sequence has {query.shape[2]} tokens, sliced attention was built for {self.num_tokens}"
            )
        batch = len(query)

        def slice_groups(heads: Tensor) -> Tensor:
            heads = heads if self.order is None else heads[:, :, self.order]
            return heads.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(0, 1)  # (b groups, h, n / groups, k)

        mixed = attend(slice_groups(query), slice_groups(key), slice_groups(value))
        mixed = mixed.unflatten(0, (batch, self.groups)).transpose(1, 2).flatten(2, 3)
        return mixed if self.order is None else mixed[:, :, self.order.argsort()]
