"""Settings of the texts that a run takes; `hiergen.data.text.sources` opens them. Importable without PyTorch."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from hiergen.checked import Checked, Count, CountOrZero, Range


@dataclasses.dataclass(frozen=True)
class TextDataConfig(Checked):
    """Where texts come from, and how they are cut into rows.

    Attributes:
        source: "topics" (Python's help topics) or "python" (the sources of its standard library), which come with Python; "descriptions"
            of the data sets of scikit-learn; the path of a text file or of a folder of them; or "hf:NAME" (a Hugging Face data set, the
            folder that `save_to_disk` wrote or a name on the Hub).
        split: Split of a Hugging Face data set; of other sources, what `hold_out` divides: "train" or "test".
        hold_out: For sources without a split of their own: every so manieth text is "test", the others are "train". 0 takes them whole.
        column: Column of a Hugging Face data set that holds the texts.
        length: Number of ids of a row.
        masks_texts: Texts of one row do not see each other. False lets them.
        shifts: Cut the rows of every epoch at other places.
    """

    source: str = "topics"
    split: str = "train"
    hold_out: CountOrZero = 7
    column: str = "text"
    length: Annotated[int, Range(2)] = 256
    masks_texts: bool = True
    shifts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_out == 1:
            raise ValueError("hold_out is 1, expected 0 or at least 2: nothing would be left to train on")
        if not self.source.startswith("hf:") and self.split not in _SPLITS:
            raise ValueError(
                f"split is {self.split!r}, expected one of {', '.join(_SPLITS)} for source {self.source!r}"
            )


_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


@dataclasses.dataclass(frozen=True)
class CaptionConfig(Checked):
    """How a generator reads the captions of its data.

    Attributes:
        encoder: What makes features of a text: "bytes", an encoder of words that is trained along and part of the generator; or folder or Hub
            id of a T5, CLIP or SigLIP, which stays frozen.
        num_tokens: Most words or tokens per text.
        dim: Channels of the features of "bytes"; a frozen network has its own.
        depth: Number of transformer blocks of "bytes" over the words of a text.
    """

    encoder: str = "bytes"
    num_tokens: Count = 16
    dim: Count = 128
    depth: CountOrZero = 1
