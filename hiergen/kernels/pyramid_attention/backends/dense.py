"""Dense attention in the place of pyramid attention, on CPUs where it was measured to be the faster of the two.

It is exact, so a comparison of dense with sparse attention must name a backend for the sparse one.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.kernels.dispatch import AttentionRequest, Backend
from hiergen.kernels.pyramid_attention.config import PSAConfig, density_of_bounds

#: Most tokens, and the densities from which dense attention is faster up to there, by blocks of 128 queries by 64 keys and of 32 by 16;
#: longer sequences are left to sparse attention. One thread, 4 heads of 64 channels, float32, no gradients, planning included.
DENSE_FROM: tuple[tuple[int, float, float], ...] = (
    (256, 0.0, 0.0),
    (512, 0.2, 0.0),
    (1024, 0.6, 0.2),
    (2048, 0.5, 0.2),
    (4096, 0.6, 0.4),
)
#: Blocks of fewer cells than this are taken for small ones.
_SMALL_CELLS = 64 * 32


def pays(num_tokens: int, config: PSAConfig) -> str | None:
    """Return why dense attention is the faster one for a sequence on a CPU; None where sparse attention is, by the table or beyond it."""
    row = next((row for row in DENSE_FROM if num_tokens <= row[0]), None)
    if row is None:
        return None
    # Shares of scores become blocks only when the plan is made: those modes give way only where every density would.
    density = density_of_bounds(config.bounds) if config.mode == "quota" else 0.0
    least = row[2 if config.query_block * config.key_block < _SMALL_CELLS else 1]
    if density < least:
        return None
    return f"on CPUs dense attention is faster up to {row[0]:,} tokens at densities from {least:g}"


def describe(
    q: Float[Tensor, "b h q k"], k: Float[Tensor, "b g n k"], config: PSAConfig | None, only_sparse: Sequence[str]
) -> tuple[str | None, str | None]:
    """Return why dense attention cannot stand in for a call, and why it should: `dense_cannot` and `dense_pays` of the request.

    Args:
        q: Queries.
        k: Keys.
        config: How the plan would be made; None for a plan that is given.
        only_sparse: What was asked for that dense attention does not do here.
    """
    if config is None:
        return "a plan was given, which dense attention does not follow", None
    if only_sparse:
        return f"{', '.join(only_sparse)} was asked for, which it does not do here", None
    return None, pays(max(q.shape[2], k.shape[2]), config) if q.device.type == "cpu" else None


def dense_attention(
    q: Float[Tensor, "b h q k"],
    k: Float[Tensor, "b g n k"],
    v: Float[Tensor, "b g n k"],
    *,
    scale: float | None = None,
    key_mask: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h q k"]:
    """Return attention over all keys; arguments as `reference_attention`, without a plan."""
    mask = None if key_mask is None else key_mask[:, None, None]
    enable_gqa = q.shape[1] != k.shape[1]
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)


def _refuse(request: AttentionRequest, is_named: bool) -> str | None:
    if request.dense_cannot is not None:
        return request.dense_cannot
    if not is_named and request.dense_pays is None:
        return "it was not measured to be faster at this length and density on this device"
    return None


BACKEND = Backend("dense", "a call without plan, causality, key mask and log-sum-exp", dense_attention, _refuse)
