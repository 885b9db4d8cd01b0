"""Images from more and more of their tokens: what a level adds."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.pipelines.encoding import decode_batches, encode_batches
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.hieratok import HieraTok


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
    if isinstance(tokenizer, HieraTok) and len(tokenizer.specs) == 1 and _shows_scales(tokenizer):
        counts = tuple(range(1, tokenizer.num_previews + 1))
        sides = tokenizer.config["scales"]
        tokens = tuple(sum(side**2 for side in sides[:k]) for k in counts)
        rebuilt = tuple(_previews(tokenizer, pyramid, k) for k in counts)
        return Prefixes("scales", counts, tokens, rebuilt, pyramid)
    counts = tokenizer.decodable_levels
    tokens = tuple(sum(spec.num_tokens for spec in tokenizer.specs[:k]) for k in counts)
    rebuilt = tuple(decode_batches(tokenizer, pyramid.prefix(k)) for k in counts)
    return Prefixes("levels", counts, tokens, rebuilt, pyramid)


def _shows_scales(tokenizer: HieraTok) -> bool:
    # Without heads of their own the coarse scales were never trained to be looked at.
    return len(tokenizer.preview_heads) > 0 and tokenizer.decoder.mask.is_prefix_exact


@torch.no_grad()
def _previews(tokenizer: HieraTok, pyramid: TokenPyramid, num_scales: int, *, batch_size: int = 64) -> Tensor:
    size, parts = tokenizer.config["image_size"], []
    for start in range(0, pyramid.batch_size, batch_size):
        small = tokenizer.preview(pyramid[start : start + batch_size].to(tokenizer.device), num_scales)
        large = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
        parts.append(large.clamp(-1, 1).cpu())
    return torch.cat(parts)
