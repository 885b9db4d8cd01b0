"""A named configuration of a model, with the paper it comes from."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named configuration.

    Attributes:
        model: Class name, a key of `hiergen.registry.MODEL_CLASSES`.
        config: Arguments of its constructor.
        source: Paper and table, or why the size was chosen.
    """

    model: str
    config: dict[str, Any]
    source: str
