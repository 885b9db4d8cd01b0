"""Which tokens are hidden, in training and while generating: stages, random orders, mask ratios and counts of tokens.

Every token count here is a number of the host, so that shapes never depend on values of the device. An order lists tokens by how
long they stay hidden: with `l` masked, the first `l` of the order are.

Letters: `b` batch, `n` tokens, `k` hidden tokens, `m` tokens of a coarser stage, `c` channels, `copies` of a token, each with a noise of
its own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.seeding import Rng, draw_uniform

Order = Literal["random", "levelwise"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of generation: the first `length` tokens of the sequence, the last `num_tokens` of which may be hidden.

    Attributes:
        level: The level that the stage completes.
        length: Tokens that the transformer sees, hidden or not.
        num_tokens: Tokens that the stage produces; those before them are given.
    """

    level: int
    length: int
    num_tokens: int


@dataclasses.dataclass(frozen=True)
class MaskedDraws:
    """The random parts of a training step, in the order in which they are drawn.

    Attributes:
        stage: What may be hidden. Drawn only with `order="levelwise"`.
        num_masked: Number of hidden tokens, the same in every sample.
        order: The places of the stage; the first `num_masked` are hidden.
        low_res_time: Share of noise in the coarser stage's tokens; None without such a stage.
        low_res_noise: The noise that is mixed into the coarser stage's tokens.
        drop: Which samples lose their condition; None outside train mode.
        timesteps: Diffusion timestep of every copy of every hidden token.
        noise: Diffusion noise of every copy of every hidden token.
    """

    stage: Stage
    num_masked: int
    order: Int[Tensor, "b n"]
    low_res_time: Float[Tensor, " b"] | None
    low_res_noise: Float[Tensor, "b m c"] | None
    drop: Bool[Tensor, " b"] | None
    timesteps: Int[Tensor, "copies b k"]
    noise: Float[Tensor, "copies b k c"]


def make_stages(sizes: Sequence[int], order: Order) -> tuple[Stage, ...]:
    """Return the stages of a sequence of levels: all tokens at once ("random") or level by level ("levelwise")."""
    if order == "random":
        return (Stage(level=len(sizes) - 1, length=sum(sizes), num_tokens=sum(sizes)),)
    return tuple(Stage(level, sum(sizes[: level + 1]), size) for level, size in enumerate(sizes))


def random_orders(batch: int, stage: Stage, *, rng: Rng | None, device: torch.device) -> Int[Tensor, "b n"]:
    """Return one order per sample: a uniformly random permutation of the stage's own tokens, then the given ones in place.

    One draw of `(batch, stage.num_tokens)` uniform numbers, which are ranked.
    """
    given = stage.length - stage.num_tokens
    own = draw_uniform((batch, stage.num_tokens), rng=rng, device=device).argsort(dim=1, stable=True) + given
    return torch.cat((own, torch.arange(given, device=device).expand(batch, -1)), dim=1)


def mask_ratio(u: float, *, minimum: float, std: float) -> float:
    """Return the mask ratio at quantile `u` of a normal of mean 1 cut to [minimum, 1].

    Source:
        arXiv:2406.11838, section 3.4 and appendix: minimum 0.7, std 0.25; the mean of the draws is 0.867.
    """
    low = float(torch.special.ndtr(torch.tensor((minimum - 1) / std, dtype=torch.float64)))
    # The upper end is the mean itself, whose quantile is one half.
    quantile = torch.tensor(low + u * (0.5 - low), dtype=torch.float64)
    return min(1.0, max(minimum, 1 + std * float(torch.special.ndtri(quantile))))


def unmask_counts(num_tokens: int, num_steps: int) -> tuple[tuple[int, int, int], ...]:
    """Return `(hidden before, hidden after, hidden as guidance counts)` of every step of the cosine schedule.

    Step s of S leaves floor(n cos(pi/2 (s + 1) / S)) tokens hidden, at least 1 and at least one fewer than before; the last
    reveals all, though guidance still counts one as hidden. More steps than tokens would be idle: `num_steps` is
    cut to `num_tokens`.

    Source:
        MaskGIT, arXiv:2202.04200 (cosine schedule), as arXiv:2406.11838 generates.
    """
    steps, before, counts = min(num_steps, num_tokens), num_tokens, []
    for step in range(steps):
        target = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        after = max(1, min(before - 1, target))
        counts.append((before, 0 if step == steps - 1 else after, after))
        before = after
    return tuple(counts)
