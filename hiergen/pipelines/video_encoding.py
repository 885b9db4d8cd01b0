"""Run a tokenizer of video over a set of clips: a cache of token pyramids, or clips from tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.codes import CodeSet, write_codes
from hiergen.data.videos.dataset import VideoSet, from_uint8
from hiergen.pipelines.encoding import join, tokenizer_fingerprint
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.base import Tokenizer


@torch.no_grad()
def encode_videos(
    tokenizer: Tokenizer,
    videos: VideoSet,
    folder: str | Path,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] = lambda done: None,
) -> CodeSet:
    """Write the token pyramids of clips to `folder`, or return the cache that is there.

    Args:
        tokenizer: Tokenizer of video, in eval mode; its clips have the number of frames and the size of `videos`.
        videos: The clips to encode.
        folder: Folder of the cache; a cache of another tokenizer or other data is refused.
        batch_size: Number of clips per pass.
        progress: Called with the number of clips done.

    Raises:
        ValueError: If the folder holds another cache, or the tokenizer is for clips of another size.
    """

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], Tensor]:
        parts = [
            tokenizer.encode(from_uint8(part).to(tokenizer.device)).to("cpu")
            for part in videos.videos[start:stop].split(batch_size)
        ]
        return [join(parts)], videos.labels[start:stop]

    source = fingerprint({"tokenizer": tokenizer_fingerprint(tokenizer), "data": videos.fingerprint})
    return write_codes(
        folder, encode, num_samples=len(videos), classes=videos.classes, source=source, progress=progress
    )
