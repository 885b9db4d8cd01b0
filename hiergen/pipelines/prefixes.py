"""Images and clips from more and more of their tokens: what a level adds.

Letters: `b` batch, `c h w` image, `t` frames.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hiergen.data.images.windows import Windows
from hiergen.pipelines.encoding import encode_batches
from hiergen.pyramid import TokenPyramid
from hiergen.telling import counted
from hiergen.tokenizers.base import Tokenizer
from hiergen.tokenizers.hieratok.model import HieraTok
from hiergen.tokenizers.videos.frames import FrameTokenizer
from hiergen.tokenizers.videos.patch_components import PatchComponents


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A first part of what the decoder reads.

    Attributes:
        unit: Unit that is counted: "levels" of tokens; "scales" of the decoder, which a tokenizer of one level derives from it; or
            principal "components", in whose order the numbers of a token come.
        count: Number of these units.
        tokens: Number of tokens that they hold.
        bits: Number of bits of their ids; None for continuous tokens.
        numbers: Number of real numbers that these tokens are computed from; None for discrete ones.
    """

    unit: str
    count: int
    tokens: int
    bits: float | None
    numbers: int | None

    def times(self, count: int) -> Prefix:
        """Return the same prefix of `count` pictures, frames or windows."""
        bits, numbers = self.bits, self.numbers
        return dataclasses.replace(
            self,
            tokens=count * self.tokens,
            bits=None if bits is None else count * bits,
            numbers=None if numbers is None else count * numbers,
        )

    def __str__(self) -> str:
        size = counted(self.numbers or 0, "number") if self.bits is None else counted(round(self.bits), "bit")
        return f"{self.caption}, {size}"

    @property
    def caption(self) -> str:
        """The number of tokens, in words."""
        return counted(self.tokens, "token")


def list_prefixes(tokenizer: Tokenizer) -> list[Prefix]:
    """Return all prefixes, ascending; the last is everything.

    A tokenizer of frames has the prefixes of each frame. One of principal components has the first 1, 2, 4, ... of them.
    """
    if isinstance(tokenizer, FrameTokenizer):
        return [prefix.times(tokenizer.config["num_frames"]) for prefix in list_prefixes(tokenizer.frame_tokenizer)]
    if isinstance(tokenizer, PatchComponents):
        tokens, dim = tokenizer.specs[0].num_tokens, tokenizer.specs[0].dim
        counts = [2**k for k in range(dim.bit_length()) if 2**k < dim] + [dim]
        return [Prefix("components", k, tokens, None, k * tokens) for k in counts]
    if isinstance(tokenizer, HieraTok) and len(tokenizer.specs) == 1 and _shows_scales(tokenizer):
        sides, dim = tokenizer.config["scales"], tokenizer.specs[0].dim
        sums = [sum(side**2 for side in sides[:k]) for k in range(1, tokenizer.num_previews + 1)]
        # All scales are computed from the code: no number of them costs more than the code does.
        whole = dim * tokenizer.specs[0].num_tokens
        return [Prefix("scales", k, tokens, None, min(dim * tokens, whole)) for k, tokens in enumerate(sums, start=1)]
    found = []
    for count in tokenizer.decodable_levels:
        specs = tokenizer.specs[:count]
        bits = [
            spec.num_tokens * torch.tensor(float(spec.vocab_size)).log2().item()
            for spec in specs
            if spec.vocab_size is not None
        ]
        tokens = sum(spec.num_tokens for spec in specs)
        is_discrete = len(bits) == len(specs)
        numbers = None if is_discrete else sum(spec.num_tokens * spec.dim for spec in specs)
        found.append(Prefix("levels", count, tokens, sum(bits) if is_discrete else None, numbers))
    return found


@torch.no_grad()
def decode_prefix(tokenizer: Tokenizer, pyramid: TokenPyramid, prefix: Prefix) -> Tensor:
    """Return the images `(b, c, h, w)` or clips `(b, c, t, h, w)` of a prefix of all levels, clamped to [-1, 1], on the tokenizer's device."""
    pyramid = pyramid.to(tokenizer.device)
    if isinstance(tokenizer, FrameTokenizer):
        by_frame = decode_prefix(tokenizer.frame_tokenizer, tokenizer.split(pyramid), prefix)
        return rearrange(by_frame, "(b t) c h w -> b c t h w", t=tokenizer.config["num_frames"])
    if prefix.unit == "components":
        tokens = pyramid.levels[0]
        kept = torch.arange(tokens.shape[2], device=tokens.device) < prefix.count
        return tokenizer.decode(TokenPyramid((tokens * kept,), pyramid.specs)).clamp(-1, 1)
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
        unit: Unit that is added from row to row: "levels" of tokens, or "scales" of the decoder, which a tokenizer of one level derives
            from it.
        counts: Number of units of each row, ascending; the last is all of them.
        tokens: Number of tokens of each row, of an image.
        images: `(b, c, h, w)` in [-1, 1] of each row.
        pyramid: All tokens, of each image or window.
    """

    unit: str
    counts: tuple[int, ...]
    tokens: tuple[int, ...]
    images: tuple[Tensor, ...]
    pyramid: TokenPyramid


def rebuild_prefixes(tokenizer: Tokenizer, images: Tensor, *, windows: Windows | None = None) -> Prefixes:
    """Return images rebuilt from every prefix of levels that can be decoded, or of scales where there is one level.

    Args:
        tokenizer: The tokenizer.
        images: `(b, c, h, w)` in [-1, 1], of the tokenizer's size.
        windows: Take images of any size apart in windows of the tokenizer's size, and count the tokens of all windows of an image.
    """
    parts = images if windows is None else windows.cut(images)
    pyramid = encode_batches(tokenizer, parts)
    listed = list_prefixes(tokenizer)
    rebuilt = []
    for prefix in listed:
        batches = [pyramid[start : start + 64] for start in range(0, pyramid.batch_size, 64)]
        decoded = torch.cat([decode_prefix(tokenizer, batch, prefix).cpu() for batch in batches])
        rebuilt.append(decoded if windows is None else windows.join(decoded, images.shape[-2], images.shape[-1]))
    counts = tuple(prefix.count for prefix in listed)
    tokens = tuple(prefix.tokens * len(parts) // len(images) for prefix in listed)
    return Prefixes(listed[0].unit, counts, tokens, tuple(rebuilt), pyramid)


@dataclasses.dataclass(frozen=True)
class AdaptiveCodes:
    """Images, each coded by its shortest prefix that is good enough.

    Attributes:
        prefixes: All prefixes of the tokenizer, ascending.
        chosen: Index in `prefixes` of each image, `(b,)` int64.
        pyramid: All tokens of every image; of image i the first `prefixes[chosen[i]].count` levels are kept.
        images: What is decoded, `(b, c, h, w)` in [-1, 1].
        psnr: PSNR of each image, `(b,)` in dB.
    """

    prefixes: tuple[Prefix, ...]
    chosen: Tensor
    pyramid: TokenPyramid
    images: Tensor
    psnr: Tensor

    @property
    def sizes(self) -> Tensor:
        """What is stored of each image, `(b,)`: bits of its ids and of the choice of its prefix; or real numbers, of continuous tokens."""
        sizes = torch.tensor([float((p.numbers or 0) if p.bits is None else p.bits) for p in self.prefixes])
        choice = 0.0 if self.prefixes[0].bits is None else math.log2(len(self.prefixes))
        return sizes[self.chosen] + choice


@torch.no_grad()
def encode_adaptive(tokenizer: Tokenizer, images: Tensor, *, min_psnr: float) -> AdaptiveCodes:
    """Return each image's shortest prefix of levels that is decoded with at least `min_psnr`, or all levels where none is.

    Longer prefixes are decoded of those images only that still need them.

    Args:
        tokenizer: The tokenizer.
        images: `(b, c, h, w)` in [-1, 1], of the tokenizer's size.
        min_psnr: Wanted PSNR of every image in dB.

    Raises:
        ValueError: If the images are not of the tokenizer's size or range.
    """
    pyramid, prefixes = encode_batches(tokenizer, images), list_prefixes(tokenizer)
    chosen = torch.full((len(images),), len(prefixes) - 1)
    best, quality = torch.empty_like(images, device="cpu"), torch.zeros(len(images))
    open_ones = torch.arange(len(images))
    for index, prefix in enumerate(prefixes):
        for part in open_ones.split(64):
            made = decode_prefix(tokenizer, pyramid[part], prefix).cpu().float()
            error = (made - images[part].cpu()).square().flatten(1).mean(dim=1) / 4
            best[part], quality[part] = made, -10 * error.clamp(min=1e-10).log10()
            chosen[part] = index
        open_ones = open_ones[quality[open_ones] < min_psnr]
    return AdaptiveCodes(tuple(prefixes), chosen, pyramid, best, quality)


def _shows_scales(tokenizer: HieraTok) -> bool:
    # Without heads of their own the coarse scales were never trained to be looked at.
    return len(tokenizer.preview_heads) > 0 and tokenizer.decoder.mask.is_prefix_exact
