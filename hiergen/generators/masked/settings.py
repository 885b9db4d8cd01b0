"""How `MaskedAR` generates, and what its config may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from hiergen.checked import Count, NotNegative, Range, Share
from hiergen.generators.guidance import GuidanceSchedule, GuidanceSettings
from hiergen.generators.masked.diffusion_chain import HeadSampler, HeadSamplerKind, HeadSpacing
from hiergen.pyramid import LevelSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedARSettings(GuidanceSettings):
    """How `MaskedAR` generates.

    Guidance: r is the share of the stage's tokens that are known after a step, 1 token less after the last; "paper" counts steps.

    Attributes:
        num_steps: Most steps of a stage, or one number per stage (with `order="levelwise"` a level is a stage). A stage takes no more
            steps than it has tokens.
        guidance_schedule: How the weight of the condition changes over a stage; "official" is that of the released program.
        temperature: Factor on the noise of every step of the diffusion head; published samples without guidance use 0.95.
        head_sampler: "ddpm" (as in the released program) or "ddim" (as in the paper).
        head_steps: Number of diffusion steps that make a token.
        head_spacing: Which steps of the chain these are, "linspace" or "leading".
        eta: Noise of "ddim", 0 to 1.
        low_res_noise: Share of noise mixed into the tokens of the coarser stage, where the model takes them.

    Raises:
        ValueError: If a value is out of range.
    """

    num_steps: Count | tuple[Count, ...] = 64
    guidance_scale: NotNegative = 1.0
    guidance_schedule: GuidanceSchedule = "official"
    temperature: NotNegative = 1.0
    head_sampler: HeadSamplerKind = "ddpm"
    head_steps: Annotated[int, Range(2)] = 100
    head_spacing: HeadSpacing = "linspace"
    eta: Share = 0.0
    low_res_noise: Share = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.num_steps, tuple | list) and not self.num_steps:
            raise ValueError(f"num_steps is {self.num_steps}, expected at least 1")
        self.sampler()

    def sampler(self) -> HeadSampler:
        """Return the part that the diffusion head reads."""
        return HeadSampler(self.head_sampler, self.head_steps, self.head_spacing, self.temperature, self.eta)

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

    def step_scales(self, counts: Sequence[tuple[int, int, int]]) -> tuple[float, ...]:
        """Return the guidance scale of every step of a stage whose `unmask_counts` are given."""
        if self.guidance_schedule == "paper":
            return tuple(self.scale_at(step + 1, len(counts)) for step in range(len(counts)))
        num_tokens = counts[0][0]
        return tuple(self.scale_at(num_tokens - hidden, num_tokens) for *_, hidden in counts)


def check_masked_config(specs: tuple[LevelSpec, ...], config: Any) -> None:
    """Check the parts of a `MaskedAR` config that no other part of the model checks.

    Raises:
        ValueError: Naming the entry, its value and what was expected.
    """
    if not specs:
        raise ValueError("level_specs is empty, expected at least one level")
    if any(spec.is_discrete for spec in specs) or len({spec.dim for spec in specs}) != 1:
        fitting = "; discrete tokens are for the recipe har-tiny" if any(spec.is_discrete for spec in specs) else ""
        raise ValueError(
            f"level_specs are {specs}, expected continuous levels (vocab_size None) of equal channels{fitting}"
        )
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
