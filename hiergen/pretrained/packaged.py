"""The small trained models that come with the package, one folder each with a card: `hiergen.from_pretrained("digits-1d")`."""

from __future__ import annotations

from pathlib import Path

#: The folder that holds one folder per model.
PACKAGED = Path(__file__).parent / "models"
#: A folder that holds one of these files is a saved pipeline or model.
CONFIGS = ("model_index.json", "config.json")


def packaged_models() -> list[Path]:
    """Return the folders of the models that come with the package, pipelines and tokenizers; a folder's name is the model's."""
    return sorted(path.parent for file in CONFIGS for path in PACKAGED.glob(f"*/{file}"))
