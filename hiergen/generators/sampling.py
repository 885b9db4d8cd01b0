"""Drawing token ids from logits: temperature, top-k, top-p, and the draw itself.

Letters: `b` batch, `n` tokens, `v` vocabulary.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.checked import Checked, CountOrZero, NotNegative, Share
from hiergen.kernels.dispatch import is_fast_cpu
from hiergen.seeding import Rng, draw_exponential, draws_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawSettings(Checked):
    """How ids are drawn from logits. Applied in this order: temperature, top-k, top-p.

    Attributes:
        temperature: Number that divides the logits; 0 is as good as greedy.
        top_k: Keep the k most probable ids (and ties with the last); 0 keeps all.
        top_p: Keep the most probable ids up to and including the first at which their sum exceeds p; 1 keeps all.
        greedy: Take the most probable id, draw nothing.

    Raises:
        ValueError: If a value is out of its range.
    """

    temperature: NotNegative = 1.0
    top_k: CountOrZero = 0
    top_p: Share = 1.0
    greedy: bool = False


def keep_top_k(logits: Float[Tensor, "... v"], k: int) -> Float[Tensor, "... v"]:
    """Return the logits with all but the `k` largest (and ties with the smallest of them) at minus infinity."""
    threshold = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -math.inf)


def keep_top_p(logits: Float[Tensor, "... v"], p: float) -> Float[Tensor, "... v"]:
    """Return the logits with all ids at minus infinity before which the more probable ones already sum to more than `p`.

    Of equal logits the first are kept. On a CPU only the largest are sorted, where they suffice.
    """
    few = logits.shape[-1] // 16
    # Elsewhere the host would wait for the device to hear whether they suffice.
    if few < 32 or not is_fast_cpu(logits.device):
        return _keep_top_p_by_sort(logits, p)
    rows = logits.flatten(0, -2)
    ordered = rows.topk(few, dim=-1).values
    total = (ordered - rows.logsumexp(dim=-1, keepdim=True)).exp().cumsum(dim=-1)
    num_kept = 1 + (total[:, :-1] <= p).sum(dim=-1, keepdim=True)
    threshold = ordered.gather(-1, num_kept - 1)
    kept, ties = rows > threshold, rows == threshold
    num_ties = num_kept - kept.sum(dim=-1, keepdim=True)
    if bool((ties.sum(dim=-1, keepdim=True) > num_ties).any()):
        ties &= ties.cumsum(dim=-1) <= num_ties
    out = rows.masked_fill(~(kept | ties), -math.inf)
    # Not <=, which is false for NaN.
    short = ~(total[:, -1] > p)
    if bool(short.any()):
        out[short] = _keep_top_p_by_sort(rows[short], p)
    return out.view_as(logits)


def _keep_top_p_by_sort(logits: Float[Tensor, "... v"], p: float) -> Float[Tensor, "... v"]:
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    total = ordered.softmax(dim=-1).cumsum(dim=-1)
    # An id is judged by the sum *before* it, so the one that crosses the threshold stays, and so does the first.
    dropped = torch.zeros_like(total, dtype=torch.bool)
    dropped[..., 1:] = total[..., :-1] > p
    return logits.masked_fill(dropped.scatter(-1, index, dropped), -math.inf)


def truncate(logits: Float[Tensor, "... v"], settings: DrawSettings) -> Float[Tensor, "... v"]:
    """Return logits in float32 after temperature, top-k and top-p: minus infinity where an id is dropped."""
    logits = logits.float() / max(settings.temperature, 1e-5)
    if settings.top_k:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
        logits = keep_top_p(logits, settings.top_p)
    return logits


def draw_ids(
    logits: Float[Tensor, "*rows v"], settings: DrawSettings, *, rng: Rng | None = None
) -> Int[Tensor, "*rows"]:
    """Return one id per row of logits, int64, without waiting for the device.

    With one generator all rows are drawn in one call, in row-major order, and equal what `torch.multinomial` draws from it.

    Args:
        logits: Unnormalized log probabilities; filtered and normalized in float32.
        settings: Temperature and truncation, and whether to draw at all.
        rng: Source of random numbers; a `SampleRng` draws for each row of the first dimension by itself. On another device
            than the logits (a CPU generator for reproducible seeds), the numbers are drawn there and moved.
    """
    if settings.greedy:
        return logits.float().argmax(dim=-1)
    probabilities = truncate(logits, settings).softmax(dim=-1)
    # The largest of p / Exponential(1) falls on id i with probability p_i: what torch.multinomial does, less its checks of
    # the input, which make a GPU wait.
    noise = draw_exponential(probabilities.shape, rng=rng, device=probabilities.device)
    return (probabilities / noise).argmax(dim=-1)


def draw_missing(
    logits: Float[Tensor, "b n v"],
    ids: Int[Tensor, "b n"],
    given: Bool[Tensor, "b n"] | None,
    settings: DrawSettings,
    *,
    rng: Rng | None = None,
) -> Int[Tensor, "b n"]:
    """Return `draw_ids` with the ids that are given in their places; samples that have them all draw nothing from a `SampleRng`.

    Args:
        logits: As in `draw_ids`.
        ids: The ids that are given; others are not read.
        given: Where they are (this is read by the host); None for nowhere.
        settings: As in `draw_ids`.
        rng: As in `draw_ids`. One generator for the batch draws for all samples if any id is missing.
    """
    if given is None:
        return draw_ids(logits, settings, rng=rng)
    is_drawn = ~given.all(dim=1)
    if not bool(is_drawn.any()):
        return ids
    return torch.where(given, ids, draw_ids(logits, settings, rng=draws_of(rng, is_drawn)))
