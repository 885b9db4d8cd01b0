"""How sequence models sample: levels by class, and texts."""

from __future__ import annotations

import dataclasses

from hiergen.checked import Count
from hiergen.generators.guidance import GuidanceSettings
from hiergen.generators.sampling import DrawSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceSettings(GuidanceSettings, DrawSettings):
    """How `SequenceModel.generate` samples levels: guidance (r is the share of tokens known before the step), drawing, what is below.

    Attributes:
        use_cache: Keep the states of earlier tokens. False computes the whole sequence again at every step: the same tokens, slower.
    """

    use_cache: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings(DrawSettings):
    """How `SequenceModel.generate_text` samples.

    Attributes:
        max_new_bytes: Number of bytes that are made at most.
        stop: Strings that end a text; the text is cut before the first of them.
        use_cache: Keep the states of earlier bytes. False computes the whole text again for every byte: the same bytes, slower.
    """

    max_new_bytes: Count = 256
    stop: tuple[str, ...] = ()
    use_cache: bool = True
