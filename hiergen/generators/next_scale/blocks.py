"""VAR's transformer block: a condition modulates it, its attention may compare directions only, and it continues from a cache.

Letters: `b` batch, `n` tokens, `d` channels, `s` six times as many, `h` heads, `k` channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.cross import RowReader, read_rows
from hiergen.nn.blocks.layers import Branch, GeluMLP, Linear, add_branches, make_norm
from hiergen.nn.blocks.transformer import modulate
from hiergen.nn.cache import LayerCache

#: Largest factor of the unit queries.
_MAX_SCALE = 100.0


class ScaledAttention(nn.Module):
    """Self-attention whose keys have no bias.

    With `use_qk_norm` queries and keys are unit vectors, and each head's queries are multiplied by a learned factor, at first 4 and at most
    100. Without it the scores are divided by four times the root of a head's channels, as VAR's first weights need.

    Args:
        dim: Channels of a token.
        num_heads: Attention heads.
        use_qk_norm: Compare directions only.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, *, use_qk_norm: bool) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}, expected a divisor of dim {dim}")
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(dim))
        self.value_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((num_heads,), math.log(4))) if use_qk_norm else None
        self.proj = Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        parts = (query + self.query_bias, key, value + self.value_bias)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)  # (b, h, n, k)
        scale = 0.25 / math.sqrt(query.shape[-1])
        if self.log_scale is not None:
            factor = self.log_scale.clamp(max=math.log(_MAX_SCALE)).exp()
            query = F.normalize(query, dim=-1) * factor[:, None, None].to(query.dtype)
            key, scale = F.normalize(key, dim=-1), 1.0
        if cache is not None:
            key, value = cache.append(key, value)
        attended = attention(query, key, value.to(query.dtype), mask=mask, scale=scale)
        return self.proj(attended.transpose(1, 2).flatten(2))


class NextScaleBlock(nn.Module):
    """x += gate1 Attn(LN(x)(1 + scale1) + shift1); x += gate2 FFN(LN(x)(1 + scale2) + shift2).

    The modulation (gate1, gate2, scale1, scale2, shift1, shift2) is Linear(SiLU(c)) of the condition c. The linear layer is the block's own,
    or all blocks share one and each adds a learned offset to what it gives.

    Args:
        dim: Channels of a token and of the condition.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward part over `dim`.
        use_qk_norm: Compare directions only (`ScaledAttention`).
        shares_modulation: Add an offset to a shared modulation; False for a linear layer of the block's own.
        drop_path: Probability of dropping a whole branch of a sample, in train mode, by PyTorch's global generator.
        reads_rows: Whether tokens also look at rows, of a text, behind self-attention: x += Cross(x, rows), which is 0 at first.

    Source:
        VAR, arXiv:2404.02905.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        use_qk_norm: bool = True,
        shares_modulation: bool = False,
        drop_path: float = 0.0,
        reads_rows: bool = False,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = make_norm("layer", dim)
        self.attention = ScaledAttention(dim, num_heads, use_qk_norm=use_qk_norm)
        self.ffn = GeluMLP(dim, int(dim * mlp_ratio), approximate="tanh")
        self.modulation = None if shares_modulation else Linear(dim, 6 * dim)
        self.modulation_offset = nn.Parameter(torch.zeros(6 * dim)) if shares_modulation else None
        self.cross = RowReader(dim, num_heads) if reads_rows else None

    def modulate(self, condition: Tensor) -> Float[Tensor, "b s"]:
        """Return the modulation from the condition `(b, d)`, or from the shared modulation `(b, s)`."""
        if self.modulation_offset is not None:
            return condition + self.modulation_offset
        assert self.modulation is not None
        return self.modulation(F.silu(condition))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Tensor,
        *,
        mask: Bool[Tensor, "n n"] | None = None,
        cache: LayerCache | None = None,
        is_modulated: bool = False,
        rows: Float[Tensor, "b r d"] | None = None,
        only: Branch | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return the block's output.

        Args:
            x: Tokens; with a cache, those of the current level only.
            condition: What `modulate` takes; or what it gave.
            mask: Which tokens of `x` see which; None for all.
            cache: Keys and values of the earlier levels. Those of `x` are appended, and `x` sees all that the cache holds then.
            is_modulated: Whether `condition` is what `modulate` gave, for callers that run a block many times on one condition.
            rows: What `reads_rows` reads.
            only: The branch to return alone, without what it is added to.
        """
        parts = condition if is_modulated else self.modulate(condition)
        gate1, gate2, scale1, scale2, shift1, shift2 = parts.chunk(6, dim=-1)
        return add_branches(
            x,
            lambda x: self._keep(
                read_rows(
                    self.cross,
                    x,
                    gate1[:, None] * self.attention(modulate(self.norm(x), shift1, scale1), mask=mask, cache=cache),
                    rows,
                )
            ),
            lambda x: self._keep(gate2[:, None] * self.ffn(modulate(self.norm(x), shift2, scale2))),
            only,
        )

    def _keep(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * (kept / (1 - self.drop_path)).to(branch.dtype)
