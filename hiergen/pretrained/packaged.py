"""The small trained models that come with the package, one folder each, with a card."""

from __future__ import annotations

from pathlib import Path

#: Where they lie: `hiergen.from_pretrained(PACKAGED / "digits-1d")`.
PACKAGED = Path(__file__).parent / "models"


def packaged_models() -> list[Path]:
    """Return the folders of the models that come with the package."""
    return sorted(path.parent for path in PACKAGED.glob("*/model_index.json"))
