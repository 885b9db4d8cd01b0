"""How `NextScaleAR` generates."""

from __future__ import annotations

import dataclasses

from hiergen.generators.guidance import GuidanceSchedule, GuidanceSettings
from hiergen.generators.sampling import DrawSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextScaleSettings(GuidanceSettings, DrawSettings):
    """How `NextScaleAR.generate` samples: guidance (r is the share of the levels before this one), drawing, and what is below.

    The official program's cfg is 1 less than `guidance_scale`; its top_p 0 is 1 here.

    Attributes:
        guidance_schedule: How the weight changes over the levels; by default it rises evenly from 1 at the first to `guidance_scale` at the last.
        smooth: Go on from mixtures of codes in place of single codes, which makes smoother images of less variety. The pyramid then holds
            the mixtures, `(b, n, c)` per level, from which the tokenizer decodes the image; not the ids.
        num_levels: Number of levels to generate; None is all. They equal the first levels of a full run with the same seed.
        use_cache: Keep keys and values of earlier levels. False computes the whole sequence again at every step: the same tokens, slower.
    """

    guidance_schedule: GuidanceSchedule = "official"
    smooth: bool = False
    num_levels: int | None = None
    use_cache: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smooth and self.greedy:
            raise ValueError("smooth is True beside greedy, expected one of them: mixtures of codes are drawn")

    @classmethod
    def published(cls) -> NextScaleSettings:
        """Return the settings of the published ImageNet results (FID 3.55 with d16 to 1.97 with d30)."""
        return cls(guidance_scale=2.5, top_k=900, top_p=0.96)
