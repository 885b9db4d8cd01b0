"""Vector quantization, by default on the unit sphere, with one codebook for all levels.

Letters: `b` batch, `n` tokens, `d` channels of a code, `v` vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput
from hiergen.nn.running.precision import widen, without_autocast
from hiergen.nn.running.processes import process_mean

#: Distances held at one time by the search, 64 MiB in float32.
_SEARCH_CHUNK = 2**24


class VectorQuantizer(Bottleneck):
    """Vector quantization on the unit sphere or in the plain space, learned by gradient (no moving average).

    On the sphere, latents and codebook rows are scaled to unit length. The gradient passes straight through to the latents, through
    their normalization. Everything is computed in float32 at least, whatever autocast says; on a GPU the matrix
    product of the search follows `torch.backends.cuda.matmul`, so with TF32 on near-ties may fall differently.

    Args:
        vocab_size: Number of rows of the codebook.
        dim: Channels of a code.
        commitment_weight: Weight of the loss that pulls latents to their codes.
        codebook_weight: Weight of the loss that pulls codes to their latents.
        normalize: Scale latents and rows to unit length; False searches and returns the rows as they are.
        entropy_weight: Weight of E[H(p)] - H(E[p]), low when single assignments are sure and all codes are used. At 0 the term
            is not computed; otherwise it holds several `(b n, v)` tensors.
        entropy_temperature: Number that divides the negative squared distances that give p.

    Source:
        VQ-VAE, arXiv:1711.00937; ResTok's configuration, arXiv:2601.03955.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        normalize: bool = True,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if vocab_size < 1 or dim < 1:
            raise ValueError(f"vocab_size is {vocab_size} and dim is {dim}, expected at least 1")
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature is {entropy_temperature}, expected a positive number")
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.normalize = normalize
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.uniform_(self.codebook, -1.0 / vocab_size, 1.0 / vocab_size)

    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return codes, ids and the losses "quantizer" and, if it has a weight, "entropy"."""
        with without_autocast(latents.device):
            points = self._place(latents)
            codebook = self._place(self.codebook)
            ids = nearest_ids(points.detach(), codebook.detach())
            codes = F.embedding(ids, codebook)
            losses = {
                "quantizer": self.commitment_weight * (codes.detach() - points).square().mean()
                + self.codebook_weight * (codes - points.detach()).square().mean()
            }
            if self.entropy_weight > 0:
                losses["entropy"] = self.entropy_weight * self._entropy_gap(points, codebook)
            return BottleneckOutput(points + (codes - points).detach(), ids, losses)

    def lookup(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return the codes of ids, in float32 at least."""
        return self._place(F.embedding(ids, self.codebook))

    def mix(self, weights: Float[Tensor, "*batch v"]) -> Float[Tensor, "*batch d"]:
        """Return the mixture of the raw codebook rows, normalized as codes are, for generators that give soft weights instead of ids."""
        with without_autocast(weights.device):
            return self._place(weights.to(self.codebook.dtype) @ self.codebook)

    def _place(self, vectors: Tensor) -> Tensor:
        """Return vectors in the space of the search."""
        wide = widen(vectors)
        return F.normalize(wide, dim=-1, eps=1e-12) if self.normalize else wide

    def _entropy_gap(self, points: Tensor, codebook: Tensor) -> Tensor:
        logits = -_squared_distances(points.flatten(0, -2), codebook) / self.entropy_temperature
        log_p = F.log_softmax(logits + 1e-5, dim=-1)
        p = log_p.exp()
        mean_p = process_mean(p.mean(dim=0))
        sample_entropy = -(p * log_p).sum(dim=-1).mean()
        return sample_entropy + (mean_p * (mean_p + 1e-5).log()).sum()


@torch.no_grad()
def nearest_ids(points: Float[Tensor, "*batch d"], codebook: Float[Tensor, "v d"]) -> Int[Tensor, "*batch"]:
    """Return the row of the codebook nearest to each point, the lowest of equally near ones."""
    flat = points.flatten(0, -2)
    rows = max(1, _SEARCH_CHUNK // codebook.shape[0])
    ids = [_squared_distances(chunk, codebook).argmin(dim=-1) for chunk in flat.split(rows)]
    return torch.cat(ids).unflatten(0, points.shape[:-1])


def _squared_distances(points: Tensor, codebook: Tensor) -> Tensor:
    norms = points.square().sum(dim=-1, keepdim=True) + codebook.square().sum(dim=-1)
    return norms - 2.0 * (points @ codebook.T)
