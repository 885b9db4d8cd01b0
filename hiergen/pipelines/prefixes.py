"""Images from more and more of their tokens: what a level adds."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.pipelines.encoding import encode_batches
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.hieratok import HieraTok


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A first part of what the decoder reads.

    Attributes:
        unit: What is counted: "levels" of tokens, or "scales" of the decoder, which a tokenizer of one level derives from it.
        count: How many of them.
        tokens: How many tokens they hold.
        bits: Bits of their ids; None for continuous tokens.
    """

    unit: str
    count: int
    tokens: int
    bits: float | None


def list_prefixes(tokenizer: Tokenizer) -> list[Prefix]:
    """Return all prefixes, ascending; the last is everything."""
    if isinstance(tokenizer, HieraTok) and len(tokenizer.specs) == 1 and _shows_scales(tokenizer):
        sides = tokenizer.config["scales"]
        return [
            Prefix("scales", k, sum(side**2 for side in sides[:k]), None) for k in range(1, tokenizer.num_previews + 1)
        ]
    found = []
    for count in tokenizer.decodable_levels:
        specs = tokenizer.specs[:count]
        bits = [
            spec.num_tokens * torch.tensor(float(spec.vocab_size)).log2().item()
            for spec in specs
            if spec.vocab_size is not None
        ]
        tokens = sum(spec.num_tokens for spec in specs)
        found.append(Prefix("levels", count, tokens, sum(bits) if len(bits) == len(specs) else None))
    return found


@torch.no_grad()
def decode_prefix(tokenizer: Tokenizer, pyramid: TokenPyramid, prefix: Prefix) -> Tensor:
    """Return the images of a prefix of all levels, `(b, c, h, w)` on the tokenizer's device, clamped to [-1, 1]."""
    pyramid = pyramid.to(tokenizer.device)
    if prefix.unit == "levels":
        return tokenizer.decode(pyramid.prefix(prefix.count)).clamp(-1, 1)
    assert isinstance(tokenizer, HieraTok)
    side = tokenizer.config["image_size"]
    small = tokenizer.preview(pyramid, prefix.count)
    return F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False).clamp(-1, 1)


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """Images rebuilt from more and more of what the decoder reads.

    Attributes:
        unit: What is added from row to row: "levels" of tokens, or "scales" of the decoder, which a tokenizer of one level derives
            from it.
        counts: Number of units of each row, ascending; the last is all of them.
        tokens: Number of tokens of each row.
        images: `(b, c, h, w)` in [-1, 1] of each row.
        pyramid: All tokens.
    """

    unit: str
    counts: tuple[int, ...]
    tokens: tuple[int, ...]
    images: tuple[Tensor, ...]
    pyramid: TokenPyramid


def rebuild_prefixes(tokenizer: Tokenizer, images: Tensor) -> Prefixes:
    """Return images rebuilt from every prefix of levels that can be decoded, or of scales where there is one level."""
    pyramid = encode_batches(tokenizer, images)
    listed = list_prefixes(tokenizer)
    rebuilt = []
    for prefix in listed:
        parts = [pyramid[start : start + 64] for start in range(0, pyramid.batch_size, 64)]
        rebuilt.append(torch.cat([decode_prefix(tokenizer, part, prefix).cpu() for part in parts]))
    counts, tokens = tuple(prefix.count for prefix in listed), tuple(prefix.tokens for prefix in listed)
    return Prefixes(listed[0].unit, counts, tokens, tuple(rebuilt), pyramid)


def _shows_scales(tokenizer: HieraTok) -> bool:
    # Without heads of their own the coarse scales were never trained to be looked at.
    return len(tokenizer.preview_heads) > 0 and tokenizer.decoder.mask.is_prefix_exact
