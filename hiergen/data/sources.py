"""Which images a run reads, as a config."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.data.digits import load_digits
from hiergen.data.images import Dataset, load_folder


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from.

    Attributes:
        source: "digits" (embedded) or the path of a folder of pictures, sub-folders being classes.
        split: Of the embedded set; a folder is taken whole.
        size: Height and width in pixels.
    """

    source: str = "digits"
    split: Literal["train", "test"] = "train"
    size: int = 32


def open_images(config: DataConfig) -> Dataset:
    """Return the images of a config.

    Raises:
        ValueError: If the source does not exist or cannot be read.
    """
    if config.source == "digits":
        return load_digits(config.split, size=config.size)
    return load_folder(config.source, size=config.size)
