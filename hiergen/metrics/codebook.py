"""How much of a codebook is in use."""

from __future__ import annotations

import dataclasses

import torch

from hiergen.pyramid import TokenPyramid


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """Use of a codebook over a set of ids.

    Attributes:
        used: Fraction of the vocabulary that occurs.
        perplexity: Two to the power of the entropy in bits: the size of a uniform codebook as informative as this one.
        entropy_bits: Entropy of the ids in bits.
        num_ids: Number of ids that were counted; with fewer ids than vocabulary `used` cannot reach 1.
    """

    used: float
    perplexity: float
    entropy_bits: float
    num_ids: int


def codebook_use(ids: torch.Tensor, vocab_size: int) -> CodebookUse:
    """Return the use of a vocabulary by int64 ids of any shape.

    Raises:
        ValueError: If there are no ids.
    """
    if ids.numel() == 0:
        raise ValueError("codebook_use needs at least one id, got none")
    counts = torch.bincount(ids.flatten(), minlength=vocab_size).double()
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * share.log2()).sum())
    return CodebookUse(float((counts > 0).double().mean()), 2**entropy, entropy, ids.numel())


def codebook_use_by_level(pyramid: TokenPyramid) -> list[CodebookUse]:
    """Return the use of the vocabulary by each level.

    Raises:
        ValueError: If a level is continuous.
    """
    for index, spec in enumerate(pyramid.specs):
        if spec.vocab_size is None:
            raise ValueError(f"level {index} is continuous: it has no codebook")
    return [codebook_use(ids, spec.vocab_size or 0) for ids, spec in zip(pyramid.levels, pyramid.specs, strict=True)]
