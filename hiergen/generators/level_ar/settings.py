"""How `LevelAR` generates."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from hiergen.checked import Range, Share
from hiergen.generators.guidance import GuidanceSettings
from hiergen.generators.level_ar.exits import EarlyExits, Fill
from hiergen.generators.level_ar.group_layout import GroupLayout
from hiergen.generators.sampling import DrawSettings
from hiergen.nn.depth.stack import BlockStack


@dataclasses.dataclass(frozen=True, kw_only=True)
class LevelARSettings(GuidanceSettings, DrawSettings):
    """How `LevelAR.generate` samples: guidance (r is the share of steps done before the step), drawing, and what is below.

    Attributes:
        guidance_interval: Index of the last token that is guided: steps that begin behind it follow the condition alone; -1 guides all.
            LlamaGen's `cfg_interval` v is v + 1 here.
        num_levels: Number of levels to generate; None is all. They equal the first levels of a full run with the same seed.
        use_cache: Keep keys and values of earlier tokens. False computes the whole sequence again at every step: the same
            tokens, slower.
        exit_levels: Number of the exit of the plan at which each level is read, 1 for the first; None reads all after the last step.
        exit_confidence: Read a step's tokens at the first exit whose likeliest ids are all at least this probable.
        exit_fill: What stands at steps that tokens skipped (`hiergen.generators.level_ar.exits`): "run" or "copy"; None where nobody
            reads there.
        level_chains: Number of chains that each level runs with; None is all. Without shared keys and values no level may run with more
            chains than a coarser one: keys of the others would not be there.
    """

    guidance_interval: Annotated[int, Range(-1)] = -1
    num_levels: int | None = None
    use_cache: bool = True
    exit_levels: tuple[int, ...] | None = None
    exit_confidence: Share | None = None
    exit_fill: Fill | None = None
    level_chains: tuple[int, ...] | None = None

    @classmethod
    def published(cls) -> LevelARSettings:
        """Return the settings of the published ImageNet result (gFID 2.34 with HAR-L)."""
        return cls(guidance_scale=3.75, guidance_schedule="step", window_start=0.25, top_p=0.95)

    @property
    def is_guided(self) -> bool:
        """Whether any step is guided: a scale of 1 or less turns guidance off, as in the official sampler."""
        return self.guidance_scale > 1

    def exits(self, blocks: BlockStack, num_levels: int) -> EarlyExits | None:
        """Return which exits tokens are read at; None where all are read after the last step."""
        if self.exit_levels is None and self.exit_confidence is None:
            if self.exit_fill is not None:
                raise ValueError(
                    f"exit_fill is {self.exit_fill!r} without exit_levels or exit_confidence: leave it out"
                )
            return None
        how: Any = {"levels": self.exit_levels, "confidence": self.exit_confidence, "fill": self.exit_fill}
        return EarlyExits(blocks, num_levels, **how, use_cache=self.use_cache)

    def widths(self, ends: tuple[int, ...], num_levels: int, *, shares_kv: bool) -> tuple[int, ...]:
        """Return how many channels each level runs with, from where the model's chains end.

        Raises:
            ValueError: If the numbers of chains are out of range, or grow where keys would be missing.
        """
        if self.level_chains is None:
            return (ends[-1],) * num_levels
        numbers = list(self.level_chains)
        if len(numbers) != num_levels or not all(1 <= number <= len(ends) for number in numbers):
            raise ValueError(
                f"level_chains is {numbers}, expected {num_levels} numbers from 1 to {len(ends)}, the chains"
            )
        if not shares_kv and numbers != sorted(numbers, reverse=True):
            raise ValueError(
                f"level_chains is {numbers}, but a level with more chains than a coarser one would read keys that are not there; "
                "expected numbers that do not grow, or a model with share_kv"
            )
        return tuple(ends[number - 1] for number in numbers)

    def num_guided_steps(self, layout: GroupLayout) -> int:
        """Return how many steps of a layout, from the first on, are guided."""
        if not self.is_guided:
            return 0
        if self.guidance_interval < 0:
            return len(layout.steps)
        return sum(step.start <= self.guidance_interval for step in layout.steps)
