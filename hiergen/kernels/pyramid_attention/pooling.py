"""The pyramid of keys or values: means of 2, 4 and 8 neighbors, packed in one tensor. No attention is computed here.

Rows of a packed pyramid, for `padded` = keys rounded up to whole key blocks:
pool 2 at 0, pool 4 at padded/2, pool 8 at 3·padded/4. Key block j at pool p is the contiguous run
`[j·key_block/p, (j+1)·key_block/p)` of its pool. Pool 1 is the input itself and is not copied.

Letters: `b` batch, `g` key heads, `n` keys, `k` channels per head, `r` packed rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: Keys averaged into one, finest first; 0 (skipped) is no pool.
POOLS = (1, 2, 4, 8)
TailRule = Literal["exact", "replicate"]


def padded_length(num_tokens: int, block: int) -> int:
    """Return `num_tokens` rounded up to whole blocks."""
    return -(-num_tokens // block) * block


def packed_rows(padded: int) -> int:
    """Return how many rows the packed pools 2, 4 and 8 of `padded` keys take."""
    return padded // 8 * 7


def pool_offset(pool: int, padded: int) -> int:
    """Return the first packed row of `pool` (2, 4 or 8)."""
    return padded - 2 * padded // pool


def build_pyramid(
    x: Float[Tensor, "b g n k"],
    key_block: int,
    *,
    key_mask: Bool[Tensor, "b n"] | None = None,
    tail: TailRule = "exact",
) -> Float[Tensor, "b g r k"]:
    """Return pools 2, 4 and 8 of `x`, packed along the rows; differentiable.

    Args:
        key_block: Keys per block, a multiple of 8.
        key_mask: True for real keys; the others enter no mean. Only with tail "exact".
        tail: "exact" averages the real keys of a group; "replicate" repeats the last key up to a whole block and
            averages those too, as the official code does.

    Raises:
        ValueError: If `key_block` is not a multiple of 8, or a mask comes with "replicate".

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025. Its code rounds to the input dtype after every pool; here each pool is
        one mean in float32.
    """
    if key_block % 8:
        raise ValueError(f"key_block is {key_block}, expected a multiple of 8, the largest pool")
    if tail == "replicate" and key_mask is not None:
        raise ValueError("key_mask was given with tail='replicate', which counts repeated keys; use tail='exact'")
    length = x.shape[2]
    padded = padded_length(length, key_block)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if tail == "replicate":
        wide = torch.cat([wide, wide[:, :, -1:].expand(-1, -1, padded - length, -1)], dim=2)
        means = [wide.unflatten(2, (-1, pool)).mean(3) for pool in POOLS[1:]]
    else:
        if key_mask is not None:
            # `where`, not a product: padding may hold NaN.
            wide = torch.where(key_mask[:, None, :, None], wide, 0.0)
        wide = torch.nn.functional.pad(wide, (0, 0, 0, padded - length))
        means = []
        for pool in POOLS[1:]:
            count = pool_counts(length, padded, pool, key_mask=key_mask, device=x.device)
            total = wide.unflatten(2, (-1, pool)).sum(3)
            means.append(total / count.clamp(min=1)[:, None, :, None].to(total.dtype))
    return torch.cat(means, dim=2).to(x.dtype)


def pool_counts(
    length: int,
    padded: int,
    pool: int,
    *,
    key_mask: Bool[Tensor, "b n"] | None = None,
    tail: TailRule = "exact",
    device: torch.device | str | None = None,
) -> Tensor:
    """Return how many keys each pooled key stands for, int64 of shape (1 or b, padded / pool)."""
    if key_mask is not None:
        real = torch.nn.functional.pad(key_mask, (0, padded - length)).long()
        return real.unflatten(1, (-1, pool)).sum(2)
    limit = padded if tail == "replicate" and pool > 1 else length
    start = torch.arange(0, padded, pool, device=device)
    return (limit - start).clamp(0, pool)[None]


def packed_log_counts(
    length: int,
    padded: int,
    *,
    key_mask: Bool[Tensor, "b n"],
) -> Float[Tensor, "b r"]:
    """Return log2 of the count of every key, pool 1 first and then the packed rows; -inf where a key stands for none."""
    counts = [pool_counts(length, padded, pool, key_mask=key_mask) for pool in POOLS]
    return torch.cat(counts, dim=1).float().log2()


def unpack(packed: Float[Tensor, "b g r k"], pool: int) -> Float[Tensor, "b g m k"]:
    """Return the rows of `pool` (2, 4 or 8) of a packed pyramid, a view."""
    padded = packed.shape[2] // 7 * 8
    return packed.narrow(2, pool_offset(pool, padded), padded // pool)


def similarity_cap(k: Float[Tensor, "b g n k"], key_block: int, thresholds: tuple[float, float, float]) -> Tensor:
    """Return the largest pool that each key block bears, uint8 of shape (b, g, key blocks).

    A block bears pool p if the cosine of the first and last key of a group of p, averaged over the block's groups, exceeds
    the pool's threshold. This is not monotone: a block may bear 8 and not 2. The tail is replicated, as in the official code.

    Args:
        thresholds: Cosines in [-1, 1] that pools 2, 4 and 8 must exceed; -1 lets nearly everything pass, 1 nothing.
    """
    length = k.shape[2]
    padded = padded_length(length, key_block)
    index = torch.arange(padded, device=k.device).clamp(max=length - 1)
    wide = k.to(torch.promote_types(k.dtype, torch.float32))[:, :, index]
    norm = (wide.square().sum(-1) + 1e-12).sqrt()
    cap = torch.ones(*k.shape[:2], padded // key_block, dtype=torch.uint8, device=k.device)
    for pool, threshold in zip(POOLS[1:], thresholds, strict=True):
        first, last = wide[:, :, ::pool], wide[:, :, pool - 1 :: pool]
        cosine = (first * last).sum(-1) / (norm[:, :, ::pool] * norm[:, :, pool - 1 :: pool] + 1e-6)
        mean = cosine.unflatten(2, (-1, key_block // pool)).mean(-1)
        cap = torch.where(mean > threshold, pool, cap)
    return cap.to(torch.uint8)


class KeyPyramid(NamedTuple):
    """What one pass over keys and values leaves, for the plan and for the attention.

    Attributes:
        pooled: Packed pyramids of keys and values, (2, b, g, r, k).
        cosines: For pools 2, 4, 8 the sum of `similarity_cap`'s cosines in each group of 8 keys, (b, g, 3, m); None if not asked for.
    """

    pooled: Tensor
    cosines: Tensor | None

    @property
    def keys_by_eight(self) -> Tensor:
        """Means of 8 keys up to whole key blocks, (b, g, m, k), a view without gradient."""
        return unpack(self.pooled[0].detach(), 8)

    def similarity_cap(self, key_block: int, thresholds: tuple[float, float, float]) -> Tensor:
        """Return what the function `similarity_cap` does.

        Raises:
            ValueError: If the cosines were not asked for.
        """
        if self.cosines is None:
            raise ValueError("the pyramid was built without cosines, which a plan with a similarity cap needs")
        per_block = key_block // 8
        means = self.cosines.unflatten(-1, (-1, per_block)).sum(-1) / per_block
        cap = torch.ones_like(means[:, :, 0], dtype=torch.uint8)
        for index, (pool, threshold) in enumerate(zip(POOLS[1:], thresholds, strict=True)):
            cap = torch.where(means[:, :, index] * pool / 8 > threshold, pool, cap)
        return cap.to(torch.uint8)
