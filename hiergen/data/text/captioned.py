"""A cache of codes with the captions of its samples as an encoder of texts sees them: what a generator of texts is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.data.codes import CodeSet
from hiergen.data.dataset import Sample
from hiergen.data.text.captions import Captions, read_captions
from hiergen.data.text.config import CaptionConfig
from hiergen.generators.conditioning import TextCondition, read_words
from hiergen.pretrained.text_encoder import TextEncoder
from hiergen.seeding import derive_seed


@dataclasses.dataclass(frozen=True)
class CaptionedCodes(CodeSet):
    """A cache whose samples have captions, of which each visit draws one.

    Attributes:
        captions: Texts of each sample.
        texts: What the encoder makes of every text, once each.
        rows: Number in `texts` of every caption of a sample.
    """

    _: dataclasses.KW_ONLY
    captions: tuple[Captions, ...]
    texts: TextCondition
    rows: tuple[tuple[int, ...], ...]

    def content(self, *, is_whole: bool = False) -> str:
        digest = hashlib.sha256(super().content(is_whole=is_whole).encode())
        digest.update("\0".join(text for one in self.captions for text in one).encode())
        return digest.hexdigest()[:16]

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return what a cache without captions does, and of each sample's caption `text` `(b, n, c)` and `text_mask` `(b, n)`."""
        drawn = [derive_seed(seed, "caption", epoch, index) % len(self.rows[index]) for index, epoch in samples]
        texts = self.texts[
            torch.tensor([self.rows[index][place] for (index, _), place in zip(samples, drawn, strict=True)])
        ]
        return {**super().batch(samples, seed=seed), "text": texts.features, "text_mask": texts.mask}


def caption_codes(codes: CodeSet, folder: str | Path, config: CaptionConfig) -> CaptionedCodes:
    """Return a cache with its captions, read by an encoder; the features of a frozen one are kept in the cache's folder.

    Raises:
        ValueError: If the cache has no captions.
    """
    captions = read_captions(folder, len(codes))
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for one in captions for text in one))}
    texts = list(numbers)
    if config.encoder == "bytes":
        read = read_words(texts, config.num_tokens)
    else:
        read = TextCondition(*_frozen(config).cached(texts, folder))
    values = {field.name: getattr(codes, field.name) for field in dataclasses.fields(codes)}
    rows = tuple(tuple(numbers[text] for text in one) for one in captions)
    return CaptionedCodes(**values, captions=captions, texts=read, rows=rows)


def text_entries(config: CaptionConfig) -> dict[str, Any]:
    """Return the config entries of a generator that reads captions."""
    if config.encoder == "bytes":
        encoder: dict[str, Any] = {"name": "bytes", "depth": config.depth}
        shape = [config.num_tokens, config.dim]
    else:
        network = _frozen(config)
        encoder, shape = {"name": config.encoder}, [network.num_tokens, network.num_channels]
    return {"num_classes": None, "text_shape": shape, "text_encoder": encoder}


def _frozen(config: CaptionConfig) -> TextEncoder:
    return TextEncoder(config.encoder, num_tokens=config.num_tokens)
