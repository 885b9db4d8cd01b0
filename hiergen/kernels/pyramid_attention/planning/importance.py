"""Estimates of how much attention each query block pays to each key block, at a small part of the dense cost.

All return nonnegative float32 scores whose scale in a row is free. Their costs relative to the dense product Q K^T are 1/16 for
"sampled" and "sampled_softmax", 1/64 for "pyramid", 1/stride for "antidiagonal" and nearly nothing for "block_mean". Only the
"sampled" ones draw, and only when they get a generator; none touches the global random state.

Letters: `b` batch, `h` query heads, `g` key heads, `q` queries, `n` keys, `k` channels per head, `i` query blocks, `j` key blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.kernels.names import ImportanceName
from hiergen.kernels.pyramid_attention.pooling import padded_length, pool_counts
from hiergen.kernels.pyramid_attention.triton.availability import runs_triton
from hiergen.kernels.pyramid_attention.triton.operators import MAX_KEY_BLOCK, pooled_importance_op

#: Scores held at once while estimating: on a CPU they stay in a core's cache, elsewhere few calls matter more.
_CACHED, _LARGE = 1 << 18, 1 << 25


@dataclasses.dataclass(frozen=True)
class ImportanceRequest:
    """What an estimator is told beside queries and keys.

    Attributes:
        query_block: Queries per block.
        key_block: Keys per block.
        is_causal: Whether keys after a query do not count.
        key_offset: Keys before the first query.
        scale: Factor of the products q · k, k^-1/2 by default.
        key_mask: True for real keys, (b, keys).
        sample_fraction: One token of a block is sampled in this many.
        sample_multiple: The official code repeats the last sample up to a multiple of 64; the repeats enter the sum that it
            divides a row by (they change no plan). 1 turns this off.
        query_offsets: Sampled positions inside a query block, (b, h, query_block / sample_fraction).
        key_offsets: Sampled positions inside a key block, (b, g, key_block / sample_fraction).
        rng: Draws the offsets; without offsets and generator they are evenly spaced.
        stride: Stride of the antidiagonal estimator, in tokens.
        keys_by_eight: Means of 8 keys up to whole key blocks, (b, g, m, k), if the pyramid has been built already ("pyramid").
    """

    query_block: int = 128
    key_block: int = 128
    is_causal: bool = False
    key_offset: int = 0
    scale: float | None = None
    key_mask: Bool[Tensor, "b n"] | None = None
    sample_fraction: int = 4
    sample_multiple: int = 1
    query_offsets: Int[Tensor, "b h s"] | None = None
    key_offsets: Int[Tensor, "b g t"] | None = None
    rng: torch.Generator | None = None
    stride: int = 8
    keys_by_eight: Float[Tensor, "b g m k"] | None = None


@torch.no_grad()
def estimate_importance(
    name: ImportanceName,
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    request: ImportanceRequest,
) -> Float[Tensor, "b h i j"]:
    """Return the scores of one estimator.

    Args:
        name: "sampled" (official code), "sampled_softmax" (paper), "pyramid", "block_mean" or "antidiagonal".

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "sampled":
        return sampled_scores(q, k, request)
    if name == "sampled_softmax":
        return sampled_scores(q, k, request, softmax=True)
    if name == "pyramid":
        if runs_triton(q.device) and request.key_block <= MAX_KEY_BLOCK:
            return fused_scores(q, k, request)
        return pooled_scores(q, k, request, query_pool=8, key_pool=8)
    if name == "block_mean":
        return pooled_scores(q, k, request, query_pool=request.query_block, key_pool=request.key_block)
    if name == "antidiagonal":
        return antidiagonal_scores(q, k, request)
    raise ValueError(
        f"importance is {name!r}, expected 'sampled', 'sampled_softmax', 'pyramid', 'block_mean' or 'antidiagonal'"
    )


def draw_offsets(
    shape: tuple[int, int], block: int, fraction: int, rng: torch.Generator | None, device: torch.device
) -> Int[Tensor, "b h s"]:
    """Return `block / fraction` distinct positions inside a block for every (batch, head), drawn or evenly spaced."""
    count = max(block // fraction, 1)
    if rng is None:
        even = (torch.arange(count, device=device) * 2 + 1) * block // (2 * count)
        return even.expand(*shape, count)
    noise = torch.rand(*shape, block, generator=rng, device=rng.device)
    return noise.topk(count, dim=-1).indices.to(device)


def sampled_scores(
    q: Float[Tensor, "b h q k"], k: Float[Tensor, "b g n k"], request: ImportanceRequest, *, softmax: bool = False
) -> Float[Tensor, "b h i j"]:
    """Return the largest weight among sampled (query, key) pairs of a block pair, rows divided by their sums.

    The same positions are sampled in every block of a head. Without `softmax` a query's weights are relative to its own
    largest one, so that several blocks tie at the top: the official code. With it they are softmax probabilities over the
    sampled keys: the paper.

    Source:
        Pyramid Sparse Attention, arXiv:2512.04025, section 3. It is float32 throughout; its code stores scores in the model's dtype.
    """
    fraction, device = request.sample_fraction, q.device
    offsets_q, offsets_k = request.query_offsets, request.key_offsets
    if offsets_q is None:
        offsets_q = draw_offsets((q.shape[0], q.shape[1]), request.query_block, fraction, request.rng, device)
    if offsets_k is None:
        offsets_k = draw_offsets((k.shape[0], k.shape[1]), request.key_block, fraction, request.rng, device)
    queries, at_q, blocks_q = _sample(q, offsets_q, request.query_block, request.sample_multiple)
    keys, at_k, blocks_k = _sample(k, offsets_k, request.key_block, request.sample_multiple)
    group = q.shape[1] // k.shape[1]
    keys, at_k = keys.repeat_interleave(group, dim=1), at_k.repeat_interleave(group, dim=1)
    per_block = offsets_k.shape[-1]
    seen = _seen_keys(request, at_k)
    rows = []
    for part in _chunks(queries.shape[2], keys.shape[2] * q.shape[0] * q.shape[1], q.device):
        score = _scale(q, request) * (queries[:, :, part] @ keys.transpose(-1, -2))
        if seen is not None:
            score = score.masked_fill(~seen, -torch.inf)
        if request.is_causal:
            later = at_k[:, :, None, :] > request.key_offset + at_q[:, :, part, None]
            score = score.masked_fill(later, -torch.inf)
        best = score.amax(dim=-1, keepdim=True)
        weight = torch.exp(score - torch.where(best.isinf(), 0.0, best))
        if softmax:
            weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-38)
        rows.append(weight.unflatten(-1, (-1, per_block)).amax(dim=-1))
    scores = torch.cat(rows, dim=2).unflatten(2, (-1, offsets_q.shape[-1])).amax(dim=3)[:, :, :blocks_q]
    return (scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-38))[..., :blocks_k]


def pooled_scores(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    request: ImportanceRequest,
    *,
    query_pool: int,
    key_pool: int,
) -> Float[Tensor, "b h i j"]:
    """Return the softmax mass between pooled queries and pooled keys, summed over a key block, averaged over a query block.

    Pools of 8 reuse what the pyramid holds; pools of a whole block compare block means.
    """
    queries, count_q = _means(q, request.query_block, query_pool, None)
    keys, count_k = _pooled_keys(k, key_pool, request)
    keys = keys.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    bias = count_k.log()[:, None, None]
    first_key = torch.arange(keys.shape[2], device=q.device) * key_pool
    last_query = request.key_offset + (torch.arange(queries.shape[2], device=q.device) + 1) * query_pool - 1
    queries, keys = queries * _scale(q, request), keys.transpose(-1, -2)
    rows = []
    for part in _chunks(queries.shape[2], keys.shape[3] * q.shape[0] * q.shape[1], q.device):
        score = (queries[:, :, part] @ keys).add_(bias)
        if request.is_causal:
            score.masked_fill_(first_key > last_query[part, None], -torch.inf)
        # A query that sees no key weighs none.
        weight = score.softmax(dim=-1).nan_to_num_(nan=0.0)
        rows.append(weight.unflatten(-1, (-1, request.key_block // key_pool)).sum(dim=-1))
    mass = torch.cat(rows, dim=2) * (count_q > 0)[:, None, :, None]
    return mass.unflatten(2, (-1, request.query_block // query_pool)).mean(dim=3)


def fused_scores(
    q: Float[Tensor, "b h q k"], k: Float[Tensor, "b g n k"], request: ImportanceRequest
) -> Float[Tensor, "b h i j"]:
    """Return `pooled_scores` at pools of 8 through two Triton kernels; means are rounded to the dtype of the inputs."""
    keys, count_k = _pooled_keys(k, 8, request)
    log_counts = None if request.key_mask is None else count_k.float().log2()
    return pooled_importance_op(
        q, keys.to(q.dtype), log_counts, k.shape[2], request.query_block, request.key_block, request.is_causal,
        request.key_offset, _scale(q, request),
    )  # fmt: skip


def antidiagonal_scores(
    q: Float[Tensor, "b h q k"], k: Float[Tensor, "b g n k"], request: ImportanceRequest
) -> Float[Tensor, "b h i j"]:
    """Return softmax mass of sums along antidiagonals: reduced query t is tokens tS+S-1 … tS, reduced key t is tS … tS+S-1.

    Args:
        request: The `stride` S divides both blocks.

    Raises:
        ValueError: If S does not divide them.

    Source:
        XAttention, arXiv:2503.16428. Its code does not mask zero-padded keys in the bidirectional case; here they are masked.
    """
    stride = request.stride
    if request.query_block % stride or request.key_block % stride:
        raise ValueError(
            f"stride is {stride}, expected a divisor of the blocks {request.query_block} and {request.key_block}"
        )
    length_q, length_k = q.shape[2], k.shape[2]
    wide_q = _pad(q.float(), padded_length(length_q, request.query_block)).unflatten(2, (-1, stride))
    wide_k = k.float() if request.key_mask is None else torch.where(request.key_mask[:, None, :, None], k.float(), 0.0)
    wide_k = _pad(wide_k, padded_length(length_k, request.key_block)).unflatten(2, (-1, stride))
    queries = wide_q.flip(3).flatten(3)
    keys = wide_k.flatten(3).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    at_q = torch.arange(queries.shape[2], device=q.device)
    at_k = torch.arange(keys.shape[2], device=q.device)
    unseen = (at_k * stride >= length_k)[None, None, None]
    if request.key_mask is not None:
        real = _pad(request.key_mask[:, None, :, None], keys.shape[2] * stride).unflatten(2, (-1, stride)).any(dim=3)
        unseen = ~real[:, :, None, :, 0]
    rows = []
    for part in _chunks(queries.shape[2], keys.shape[2] * q.shape[0] * q.shape[1], q.device):
        score = (_scale(q, request) / stride) * (queries[:, :, part] @ keys.transpose(-1, -2))
        score = score.masked_fill(unseen, -torch.inf)
        if request.is_causal:
            last = (request.key_offset + (at_q[part] + 1) * stride - 1) // stride
            score = score.masked_fill(at_k > last[:, None], -torch.inf)
        weight = torch.exp(score - score.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min))
        weight = weight / weight.sum(dim=-1, keepdim=True).clamp(min=1e-38)
        weight = weight * (at_q[part] * stride < length_q)[:, None]
        rows.append(weight.unflatten(-1, (-1, request.key_block // stride)).sum(dim=-1))
    return torch.cat(rows, dim=2).unflatten(2, (-1, request.query_block // stride)).sum(dim=3)


def _scale(q: Tensor, request: ImportanceRequest) -> float:
    return 1 / math.sqrt(q.shape[-1]) if request.scale is None else request.scale


def _sample(x: Tensor, offsets: Tensor, block: int, multiple: int) -> tuple[Tensor, Tensor, int]:
    """Return the sampled tokens (b, heads, blocks · samples, k) in float32, their positions, and the number of blocks."""
    length = x.shape[2]
    num_blocks = -(-length // block)
    at = torch.arange(num_blocks, device=x.device)[:, None] * block + offsets[:, :, None].to(x.device)
    at = at.flatten(2)
    surplus = padded_length(at.shape[2], math.lcm(multiple, offsets.shape[-1])) - at.shape[2] if multiple > 1 else 0
    if surplus:
        at = torch.cat([at, at[..., -1:].expand(-1, -1, surplus)], dim=2)
    # Past the end the last token repeats, as edge padding would.
    at = at.clamp(max=length - 1)
    tokens = x.gather(2, at[..., None].expand(-1, -1, -1, x.shape[3]))
    return tokens.to(torch.promote_types(x.dtype, torch.float32)), at, num_blocks


def _seen_keys(request: ImportanceRequest, at_k: Tensor) -> Tensor | None:
    if request.key_mask is None:
        return None
    mask = request.key_mask[:, None].expand(-1, at_k.shape[1], -1)
    return mask.gather(2, at_k)[:, :, None]


def _pooled_keys(k: Tensor, pool: int, request: ImportanceRequest) -> tuple[Tensor, Tensor]:
    """Return means of `pool` real keys and how many each stands for; means of 8 are taken from the pyramid if it is there."""
    if pool == 8 and request.keys_by_eight is not None:
        padded = padded_length(k.shape[2], request.key_block)
        count = pool_counts(k.shape[2], padded, 8, key_mask=request.key_mask, device=k.device)
        wide = torch.promote_types(k.dtype, torch.float32)
        return request.keys_by_eight.to(wide), count.to(wide)
    return _means(k, request.key_block, pool, request.key_mask)


def _means(x: Tensor, block: int, pool: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return means of `pool` real tokens (float32) up to whole blocks, and how many each stands for, (1 or b, rows)."""
    length, padded = x.shape[2], padded_length(x.shape[2], block)
    real = torch.ones(1, length, dtype=torch.bool, device=x.device) if mask is None else mask
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if mask is not None:
        wide = torch.where(mask[:, None, :, None], wide, 0.0)
    count = torch.nn.functional.pad(real, (0, padded - length)).unflatten(1, (-1, pool)).sum(2).to(wide.dtype)
    total = _pad(wide, padded).unflatten(2, (-1, pool)).sum(3)
    return total / count.clamp(min=1)[:, None, :, None], count


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, length - x.shape[2]))


def _chunks(num_rows: int, row_size: int, device: torch.device) -> Iterator[slice]:
    step = max(1, (_CACHED if device.type == "cpu" else _LARGE) // max(row_size, 1))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
