"""The kinds of conditions beside class labels: none at all, and texts as an encoder of language sees them.

Letters: `b` batch, `n` tokens of a text, `c` channels of its features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """No condition, for samples without a class.

    Attributes:
        count: Number of samples.
    """

    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class TextCondition:
    """Texts as an encoder of language sees them, one per sample.

    Attributes:
        features: Features of each text's tokens, `(b, n, c)`, as many rows as the longest text has tokens, which
            `hiergen.pretrained.text_encoder` makes; or integers, what `read_words` read, for a generator with an encoder of its own.
        mask: True where a row is a token and False where it is padding, on either side, `(b, n)`.
        negative: As many texts that guidance moves away from; None is no text.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    features: Tensor
    mask: Tensor
    negative: TextCondition | None = None

    def __post_init__(self) -> None:
        given, of_mask = tuple(self.features.shape), tuple(self.mask.shape)
        if len(given) != 3 or of_mask != given[:2]:
            raise ValueError(
                f"features have shape {given} and mask {of_mask}, expected (texts, tokens, channels) and (texts, tokens)"
            )
        if self.negative is not None and len(self.negative) != len(self):
            raise ValueError(f"negative holds {len(self.negative)} texts, expected {len(self)}, one per sample")

    @property
    def is_encoded(self) -> bool:
        """Whether these are features, not yet numbers of pieces."""
        return self.features.is_floating_point()

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Tensor) -> TextCondition:
        return self._each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> TextCondition:
        """Return the texts on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def repeat_interleave(self, count: int) -> TextCondition:
        """Return each text `count` times, next to each other."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TextCondition:
        negative = None if self.negative is None else self.negative._each(change)
        return TextCondition(change(self.features), change(self.mask), negative)

    def aligned(self, num_tokens: int) -> TextCondition:
        """Return the same texts in `num_tokens` rows that end with the last token of each: padding in front, its features zero.

        Raises:
            ValueError: If there are more rows than that.
        """
        missing = num_tokens - self.features.shape[1]
        if missing < 0:
            raise ValueError(
                f"the texts have {self.features.shape[1]} rows of features, this generator reads {num_tokens}: cut them"
            )
        # A stable sort moves the padding to the front and keeps the order of the tokens.
        order = self.mask.int().argsort(dim=1, stable=True)
        mask = F.pad(self.mask.gather(1, order), (missing, 0))
        features = F.pad(self.features.gather(1, order[..., None].expand_as(self.features)), (0, 0, missing, 0))
        negative = None if self.negative is None else self.negative.aligned(num_tokens)
        return TextCondition(features * mask[..., None], mask, negative)


#: Class labels `(b,)`; texts; or features `(b, n, channels)` of one frozen encoder, or of several in a list.
Condition = Tensor | TextCondition | Sequence[Tensor]
