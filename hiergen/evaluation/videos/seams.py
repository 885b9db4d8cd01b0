"""Whether clips that are continued jump where the given frames end: how much a frame differs from the one before it, there and elsewhere.

Letters: `b` batch, `c` channels, `t h w` a clip.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hiergen.pipelines.encoding import decode_batches, encode_batches
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.seeding import make_rng


def frame_differences(clips: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b gaps"]:
    """Return the mean absolute difference of consecutive frames of clips in [-1, 1], in steps of 255."""
    return (clips[:, :, 1:] - clips[:, :, :-1]).abs().mean(dim=(1, 3, 4)) * 127.5


@torch.no_grad()
def score_seams(
    pipe: ClassToVideoPipeline,
    clips: Float[Tensor, "b c t h w"],
    labels: Int[Tensor, " b"],
    *,
    num_given: int,
    seed: int = 0,
    **settings: Any,
) -> dict[str, float]:
    """Return how much consecutive frames differ, means over clips.

    "KIND, seam" is the difference across the end of the given frames, "KIND, borders" across the ends of later tokens, "KIND, inside" of frames
    of one token behind the seam. Kinds are "real" clips, the same "rebuilt" by the tokenizer, "plain" ones that are given no frame, those that
    were "extended", and with the given frames too as they are "decoded".

    Args:
        pipe: The pipeline.
        clips: Held-out clips in [-1, 1], of the pipeline's size.
        labels: Classes of the clips.
        num_given: Number of first frames that are given.
        seed: Seed of all draws.
        settings: Settings of the generator.
    """
    length, (spec,) = clips.shape[2], pipe.tokenizer.specs
    assert spec.grid is not None
    made = {"real": clips, "rebuilt": decode_batches(pipe.tokenizer, encode_batches(pipe.tokenizer, clips))}
    made["plain"] = pipe(labels, generator=make_rng(seed, "plain"), output_type="pt", **settings).frames
    given = clips[:, :, :num_given]
    extended = pipe.extend(given, labels, generator=make_rng(seed, "seam"), output_type="pt", **settings)
    made |= {"extended": extended.frames, "decoded": decode_batches(pipe.tokenizer, extended.pyramid)}
    ends = torch.arange(1, length)
    is_border, is_later = ends % (length // spec.grid[0]) == 0, ends > num_given
    found: dict[str, float] = {}
    for kind, shown in made.items():
        gaps = frame_differences(shown.float().cpu().clamp(-1, 1)).mean(dim=0)
        found |= {
            f"{kind}, seam": float(gaps[num_given - 1]),
            f"{kind}, borders": float(gaps[is_border & is_later].mean()),
            f"{kind}, inside": float(gaps[~is_border & is_later].mean()),
        }
    return found
