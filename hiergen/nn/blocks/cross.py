"""Tokens that look at rows of something else, such as the words of a text. Letters: `b` batch, `n` tokens, `r` rows, `d` channels."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.layers import Linear, RMSNorm


class RowReader(nn.Module):
    """proj(attend(q(N(x)), k(rows), v(rows))), without a mask.

    Args:
        dim: Channels of a token and of a row.
        num_heads: Attention heads; must divide `dim`.

    Source:
        The cross-attention of PixArt, arXiv:2310.00426, whose output layer is 0 at first (`close`): a model that was trained without it
        goes on as it was.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = RMSNorm(dim)
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def close(self) -> None:
        """Set the output layer to 0."""
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "b n d"], rows: Float[Tensor, "b r d"]) -> Float[Tensor, "b n d"]:
        query = rearrange(self.query(self.norm(x)), "b n (h k) -> b h n k", h=self.num_heads)
        key, value = rearrange(self.key_value(rows), "b r (two h k) -> two b h r k", two=2, h=self.num_heads)
        return self.proj(rearrange(attention(query, key, value), "b h n k -> b n (h k)"))


def read_rows(reader: RowReader | None, x: Tensor, branch: Tensor, rows: Tensor | None) -> Tensor:
    """Return an attention branch together with what its tokens then read from rows: branch + Cross(x + branch, rows)."""
    return branch if reader is None else branch + reader(x + branch, rows)
