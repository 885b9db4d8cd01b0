"""How a generator reads texts: as rows in front of its tokens, or as rows that its tokens look at.

    LevelAR            TextPrefix: rows in front of the tokens                                                      (LlamaGen)
    MaskedAR           TextRows: rows in front of the tokens                                                        (as its features)
    FlowTransformer,   TextRows: their mean takes the place of the class in the modulation, and every block reads   (PixArt, Infinity)
    NextScaleAR        the rows by cross-attention

Letters: `b` batch, `n` tokens of a text, `c` channels of its features, `d` channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.config import nearest
from hiergen.generators.conditioning.byte_encoder import ByteTextEncoder
from hiergen.generators.conditioning.kinds import TextCondition, Unconditional

#: Entry of a generator's `text_encoder` that names what makes the features, and its value for an encoder that is trained along.
_NAME, _BYTES = "name", "bytes"


class TextTable(nn.Module):
    """What takes the place of `nn.Embedding` for labels where a generator is conditioned on a `TextCondition`.

    Args:
        num_tokens: Number of rows; shorter texts are padded in front.
        channels: Channels of the features.
        encoder: What makes the features, a generator's `text_encoder`: `{"name": "bytes", ...}` and arguments of a `ByteTextEncoder`, which is
            then part of the generator. Another name ("t5:google/flan-t5-xl") is only noted, and so is None.

    Raises:
        ValueError: If `encoder` has no name, or an argument is unknown or out of range.
    """

    def __init__(self, num_tokens: int, channels: int, encoder: Mapping[str, Any] | None) -> None:
        super().__init__()
        self.num_tokens, self.channels = num_tokens, channels
        self.encoder: ByteTextEncoder | None = None
        if encoder is None:
            return
        options = {name: value for name, value in encoder.items() if name != _NAME}
        if _NAME not in encoder:
            raise ValueError(f"text_encoder has the entries {sorted(encoder)}, expected a name among them")
        if encoder[_NAME] == _BYTES:
            known = ("num_pieces", "depth", "num_heads")
            for name in options:
                if name not in known:
                    raise ValueError(f"text_encoder has an entry {name!r}, which 'bytes' has not{nearest(name, known)}")
            self.encoder = ByteTextEncoder(channels, num_tokens, **options)

    def resolve(self, condition: Any, device: torch.device) -> TextCondition:
        """Return checked, encoded and aligned texts on a device; those of an `Unconditional` are rows of no text.

        Raises:
            TypeError: If the condition is no text.
            ValueError: If the features are of another encoder, or too many.
        """
        if isinstance(condition, Unconditional):
            features = torch.zeros(condition.count, self.num_tokens, self.channels, device=device)
            return self.without_text(TextCondition(features, features.new_ones(features.shape[:2], dtype=torch.bool)))
        if not isinstance(condition, TextCondition):
            raise TypeError(
                f"the condition is a {type(condition).__name__}, this generator was trained on texts: expected a TextCondition"
            )
        negative = None if condition.negative is None else self.resolve(condition.negative, device)
        features, mask = condition.features.to(device), condition.mask.to(device)
        if not condition.is_encoded:
            if self.encoder is None:
                raise ValueError(
                    f"the texts are words as `read_words` reads them, expected features of {self.channels} channels: this generator has no "
                    "encoder of its own, use a TextEncoder"
                )
            features = self.encoder(features, mask)
        if features.shape[2] != self.channels:
            raise ValueError(f"the texts have features of {features.shape[2]} channels, expected {self.channels}")
        aligned = TextCondition(features, mask).aligned(self.num_tokens)
        return TextCondition(aligned.features, aligned.mask, negative)

    def without_text(self, condition: TextCondition, dropped: Bool[Tensor, " b"] | None = None) -> TextCondition:
        """Return aligned texts as no text, in all samples or those that are `dropped`: rows of padding alone."""
        mask = torch.zeros_like(condition.mask) if dropped is None else condition.mask & ~dropped[:, None]
        return TextCondition(condition.features * mask[..., None], mask)


class TextPrefix(TextTable):
    """The embedding of a text as rows in front of the tokens: two linear layers, and features that stand for no text.

    Args:
        num_tokens: Number of rows; shorter texts are padded in front.
        channels: Channels of the features.
        dim: Channels of the embeddings.
        encoder: See `TextTable`.

    Source:
        LlamaGen, arXiv:2406.06525, whose features for no text are drawn once and never trained.
    """

    def __init__(self, num_tokens: int, channels: int, dim: int, encoder: Mapping[str, Any] | None = None) -> None:
        super().__init__(num_tokens, channels, encoder)
        self.fc1 = nn.Linear(channels, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.register_buffer("null_features", torch.randn(num_tokens, channels) / channels**0.5)

    null_features: Tensor

    def forward(self, condition: TextCondition) -> Float[Tensor, "b n d"]:
        """Return the embeddings of texts that are `aligned`."""
        features = condition.features.to(self.fc1.weight.dtype)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))

    def without_text(self, condition: TextCondition, dropped: Bool[Tensor, " b"] | None = None) -> TextCondition:
        """Return aligned texts with features of no text, in all samples or those that are `dropped`; each keeps its mask."""
        null = self.null_features.to(condition.features)
        if dropped is not None:
            null = torch.where(dropped[:, None, None], null, condition.features)
        return TextCondition(null.expand_as(condition.features), condition.mask)


class TextRows(TextTable):
    """The embedding of a text as rows, one linear layer, with a learned row in place of padding; no text is padding alone.

    Where nothing is masked, the rows of padding are a place that attention can rest on.

    Args:
        num_tokens: Number of rows; shorter texts are padded in front.
        channels: Channels of the features.
        dim: Channels of the embeddings.
        encoder: See `TextTable`.
        has_mean: Whether `forward` gives the mean of the rows; False has no layer for it.

    Source:
        Text by cross-attention in place of a class: PixArt, arXiv:2310.00426; its mean in the modulation besides: as in SD3,
        arXiv:2403.03206, and for levels Infinity, arXiv:2412.04431.
    """

    def __init__(
        self,
        num_tokens: int,
        channels: int,
        dim: int,
        encoder: Mapping[str, Any] | None = None,
        *,
        has_mean: bool = True,
    ) -> None:
        super().__init__(num_tokens, channels, encoder)
        self.proj = nn.Linear(channels, dim)
        self.pool = nn.Linear(dim, dim) if has_mean else None
        self.null = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the row of no text from N(0, 0.02), and let the mean say nothing yet: a model that was trained without it goes on as it was."""
        nn.init.normal_(self.null, std=0.02)
        if self.pool is not None:
            nn.init.zeros_(self.pool.weight)
            nn.init.zeros_(self.pool.bias)

    def rows(self, condition: TextCondition) -> Float[Tensor, "b n d"]:
        """Return the rows of texts that are `aligned`."""
        embedded = self.proj(condition.features.to(self.proj.weight.dtype))
        return torch.where(condition.mask[..., None], embedded, self.null.to(embedded.dtype))

    def forward(self, rows: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        """Return the mean of the rows of each text, projected; that of no text is the mean of all its rows."""
        assert self.pool is not None
        weights = torch.where(mask.any(dim=1, keepdim=True), mask, True).to(rows.dtype)[..., None]
        return self.pool((rows * weights).sum(dim=1) / weights.sum(dim=1))


def check_text_entries(
    num_classes: int | None, text_shape: Sequence[int] | None, text_encoder: Mapping[str, Any] | None
) -> None:
    """Check the entries of a generator's config that say what it is conditioned on.

    Raises:
        ValueError: If both classes and texts are given, or neither, or an encoder of texts without their shape.
    """
    if (num_classes is None) == (text_shape is None):
        raise ValueError(f"num_classes is {num_classes} and text_shape is {text_shape}, expected one of them")
    if text_shape is None and text_encoder is not None:
        raise ValueError(f"text_encoder is {dict(text_encoder)} beside num_classes {num_classes}, expected text_shape")
