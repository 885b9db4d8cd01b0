"""Which tokens are hidden, in training and while generating: random orders, mask ratios, unmasking and guidance schedules.

Every token count here is a number of the host, so that shapes never depend on values of the device. An order lists tokens by how
long they stay hidden: with `l` masked, the first `l` of the order are. Letters: `b` batch, `n` tokens, `k` hidden tokens, `m` tokens of a coarser
stage, `c` channels, `copies` of a token with a noise of its own each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.generators.masked.diffusion_chain import HeadSampler, HeadSamplerKind, HeadSpacing
from hiergen.pyramid import LevelSpec
from hiergen.seeding import Rng, draw_uniform

GuidanceSchedule = Literal["official", "paper", "constant"]
Order = Literal["random", "levelwise"]


@dataclasses.dataclass(frozen=True)
class MaskedARSettings:
    """How `MaskedAR` generates.

    Attributes:
        num_steps: Most steps a stage takes (a stage of fewer tokens takes one step a token); level by level also one number a level.
        guidance_scale: Weight of the condition; 1 is no guidance (but see "paper" in `guidance_at`).
        guidance_schedule: How the weight grows over the steps: "official", "paper" or "constant".
        temperature: Factor on the noise of every step of the diffusion head; published samples without guidance use 0.95.
        head_sampler: "ddpm" (the released program's) or "ddim" (the paper's).
        head_steps: Diffusion steps a token.
        head_spacing: Which of the chain's steps those are, "linspace" or "leading".
        eta: Noise of "ddim", 0 to 1.
        low_res_noise: Share of noise mixed into the tokens of the coarser stage, where the model takes them.

    Raises:
        ValueError: If a value is out of range.
    """

    num_steps: int | tuple[int, ...] = 64
    guidance_scale: float = 1.0
    guidance_schedule: GuidanceSchedule = "official"
    temperature: float = 1.0
    head_sampler: HeadSamplerKind = "ddpm"
    head_steps: int = 100
    head_spacing: HeadSpacing = "linspace"
    eta: float = 0.0
    low_res_noise: float = 0.5

    def __post_init__(self) -> None:
        if min((self.num_steps,) if isinstance(self.num_steps, int) else self.num_steps, default=0) < 1:
            raise ValueError(f"num_steps is {self.num_steps}, expected at least 1")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}, expected 0 or more")
        if self.guidance_schedule not in ("official", "paper", "constant"):
            raise ValueError(
                f"guidance_schedule is {self.guidance_schedule!r}, expected 'official', 'paper' or 'constant'"
            )
        if not 0 <= self.low_res_noise <= 1:
            raise ValueError(f"low_res_noise is {self.low_res_noise}, expected 0 to 1")
        self.sampler()

    def sampler(self) -> HeadSampler:
        """Return the part that the diffusion head reads."""
        return HeadSampler(self.head_sampler, self.head_steps, self.head_spacing, self.temperature, self.eta)

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1 or self.guidance_schedule == "paper"

    def steps_of(self, stage: int, num_stages: int) -> int:
        """Return the most steps of one stage.

        Raises:
            ValueError: If `num_steps` is a tuple of another length than the number of stages.
        """
        if isinstance(self.num_steps, int):
            return self.num_steps
        if len(self.num_steps) != num_stages:
            raise ValueError(f"num_steps holds {len(self.num_steps)} numbers, the generator has {num_stages} stages")
        return self.num_steps[stage]


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
        num_masked: Tokens hidden, the same in every sample.
        order: The places of the stage; the first `num_masked` are hidden.
        low_res_time: Share of noise in the coarser stage's tokens; None without such a stage.
        low_res_noise: That noise.
        drop: Samples that lose their condition; None outside train mode.
        timesteps: Diffusion timestep of every copy of every hidden token.
        noise: Its noise.
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
    """Return one order a sample: a uniformly random permutation of the stage's own tokens, then the given ones in place.

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

    Each step but the last leaves floor(n cos(pi/2 (s + 1) / S)) tokens hidden, at least 1 and at least one fewer than before; the
    last reveals all, though the guidance schedule still counts one as hidden. More steps than tokens would be idle: `num_steps` is
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


def guidance_at(settings: MaskedARSettings, step: int, num_steps: int, *, hidden: int, num_tokens: int) -> float:
    """Return the guidance scale of one step of a stage.

    "official" grows from 1 with the share of revealed tokens; "paper" is the scale times the share of steps, so it starts near 0;
    "constant" is the scale. A scale of 1 is no guidance in "official" and "constant", but not in "paper".

    Source:
        "official": the released MAR program; "paper": MAR-3D, arXiv:2503.20519, omega_s = s lambda / S with s from 1.
    """
    if settings.guidance_schedule == "constant":
        return settings.guidance_scale
    if settings.guidance_schedule == "paper":
        return settings.guidance_scale * (step + 1) / num_steps
    return 1 + (settings.guidance_scale - 1) * (num_tokens - hidden) / num_tokens


def check_masked_config(specs: tuple[LevelSpec, ...], config: Any) -> None:
    """Check the parts of a `MaskedAR` config that no other part of the model checks.

    Raises:
        ValueError: Naming the entry, its value and what was expected.
    """
    if not specs:
        raise ValueError("level_specs is empty, expected at least one level")
    if any(spec.is_discrete for spec in specs) or len({spec.dim for spec in specs}) != 1:
        raise ValueError(f"level_specs are {specs}, expected continuous levels (vocab_size None) of equal channels")
    if config.order not in ("random", "levelwise"):
        raise ValueError(f"order is {config.order!r}, expected 'random' or 'levelwise'")
    if not 0 < config.mask_ratio_min < 1:
        raise ValueError(f"mask_ratio_min is {config.mask_ratio_min}, expected more than 0 and less than 1")
    if config.mask_ratio_std <= 0:
        raise ValueError(f"mask_ratio_std is {config.mask_ratio_std}, expected a positive number")
    if not 0 <= config.condition_drop <= 1:
        raise ValueError(f"condition_drop is {config.condition_drop}, expected 0 to 1")
    if config.diffusion_batch_mul < 1:
        raise ValueError(f"diffusion_batch_mul is {config.diffusion_batch_mul}, expected at least 1")
    weights = config.level_weights
    if weights is not None and (len(weights) != len(specs) or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(f"level_weights is {weights}, expected {len(specs)} weights, none negative and not all zero")
    if len(config.low_res_noise) != 2 or not 0 <= config.low_res_noise[0] <= config.low_res_noise[1] <= 1:
        raise ValueError(f"low_res_noise is {list(config.low_res_noise)}, expected two numbers, 0 <= low <= high <= 1")
    if config.latent_multiplier == 0:
        raise ValueError(
            "latent_multiplier is 0, expected another number: tokens could not be turned back into latents"
        )
