"""Use of a codebook during training: counts kept on the device, and revival of codes that nothing chooses.

Letters: `v` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.running.processes import num_processes
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.training.tasks.term_settings import CodebookConfig

__all__ = ["CodeRevival", "CodebookConfig", "CodebookCounter", "perplexity"]


class CodebookCounter:
    """How often each level chose each code since the last summary.

    Raises:
        ValueError: If a level is continuous.
    """

    def __init__(self, specs: tuple[LevelSpec, ...]) -> None:
        for index, spec in enumerate(specs):
            if spec.vocab_size is None:
                raise ValueError(f"level {index} is continuous: it has no codebook to watch")
        self._sizes = [spec.vocab_size or 0 for spec in specs]
        self._counts: list[Tensor] | None = None

    def add(self, pyramid: TokenPyramid) -> None:
        """Count the ids of a batch, without waiting for the device."""
        if self._counts is None:
            device = pyramid.levels[0].device
            self._counts = [torch.zeros(size, device=device) for size in self._sizes]
        for counts, ids in zip(self._counts, pyramid.levels, strict=True):
            flat = ids.flatten()
            counts.index_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))

    def summary(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return "usage_k", "perplexity_k", "dead_k" and "reach_k" of every level k, and start over.

        Usage is the share of the vocabulary that was chosen. Reach is the share of the codes that could have been chosen, which are fewer
        where a line of the log counts fewer ids than there are codes: it tells a collapse from a short count.
        """
        values: dict[str, Tensor] = {}
        for level, counts in enumerate(self._counts or []):
            total = reduce(counts)
            used = (total > 0).float()
            values[f"usage_{level}"] = used.mean()
            values[f"perplexity_{level}"] = perplexity(total)
            values[f"dead_{level}"] = (1 - used).sum()
            values[f"reach_{level}"] = used.sum() / total.sum().clamp(max=len(total))
        self._counts = None
        return values


def perplexity(counts: Float[Tensor, " v"]) -> Float[Tensor, ""]:
    """Return exp of the entropy of counts: the size of a uniform codebook as informative as this one."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()


class CodeRevival(nn.Module):
    """Remembers when each code was last chosen, and replaces those that nothing chooses any more.

    The memory is a buffer, so a resumed run revives what the uninterrupted one would have revived.

    Args:
        vocab_size: Rows of the codebook.
        after: Number of samples, see `CodebookConfig.revive_after`.
    """

    last_used: Tensor

    def __init__(self, vocab_size: int, after: int) -> None:
        super().__init__()
        self.after = after
        self.register_buffer("last_used", torch.zeros(vocab_size, dtype=torch.int64))

    @torch.no_grad()
    def note(self, pyramid: TokenPyramid, samples_seen: int) -> None:
        """Remember that these ids were chosen now, by any process."""
        for ids in pyramid.levels:
            self.last_used[ids.flatten()] = samples_seen
        # At once, because checkpoints hold the first process's memory, and data parallelism hands it to all.
        if num_processes() > 1:
            torch.distributed.all_reduce(self.last_used, torch.distributed.ReduceOp.MAX)

    @torch.no_grad()
    def revive(
        self, codebook: Tensor, latents: Float[Tensor, "b n d"], samples_seen: int, rng: torch.Generator
    ) -> Tensor:
        """Overwrite the dead rows of `codebook` with random latents; return how many there were.

        With several processes the latents are those of the first process.
        """
        flat = latents.flatten(0, 1).to(codebook.dtype)
        chosen = torch.randint(len(flat), (len(codebook),), generator=rng, device=rng.device).to(flat.device)
        candidates = flat[chosen]
        if num_processes() > 1:
            torch.distributed.broadcast(candidates, 0)
        dead = samples_seen - self.last_used >= self.after
        codebook.copy_(torch.where(dead[:, None], candidates, codebook))
        self.last_used.masked_fill_(dead, samples_seen)
        return dead.sum()
