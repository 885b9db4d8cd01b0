"""Vector quantization on the unit sphere, with one codebook for all levels.

Letters: `b` batch, `n` tokens, `d` channels of a code, `v` vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput
from hiergen.nn.precision import without_autocast
from hiergen.nn.processes import process_mean

#: Distances held at one time by the search, 64 MiB in float32.
_SEARCH_CHUNK = 2**24


class VectorQuantizer(Bottleneck):
    """l2-normalized vector quantization, learned by gradient (no moving average).

    Latents and codebook rows are scaled to unit length, so codes lie on the sphere. The gradient passes straight through to the
    latents, through their normalization. Everything is computed in float32 at least, whatever autocast says; on a GPU the matrix
    product of the search follows `torch.backends.cuda.matmul`, so with TF32 on near-ties may fall differently.

    Args:
        vocab_size: Number of rows of the codebook.
        dim: Channels of a code.
        commitment_weight: Weight of the loss that pulls latents to their codes (the codebook's own has weight 1).
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
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__()
        if vocab_size < 1 or dim < 1:
            raise ValueError(f"vocab_size is {vocab_size} and dim is {dim}, expected at least 1")
        if entropy_temperature <= 0:
            raise ValueError(f"entropy_temperature is {entropy_temperature}, expected a positive number")
        self.commitment_weight = commitment_weight
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.codebook = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.uniform_(self.codebook, -1.0 / vocab_size, 1.0 / vocab_size)

    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return unit-length codes, ids and the losses "quantizer" and, if it has a weight, "entropy"."""
        with without_autocast(latents.device):
            unit = _normalize(latents)
            codebook = _normalize(self.codebook)
            ids = nearest_ids(unit.detach(), codebook.detach())
            codes = F.embedding(ids, codebook)
            losses = {
                "quantizer": self.commitment_weight * (codes.detach() - unit).square().mean()
                + (codes - unit.detach()).square().mean()
            }
            if self.entropy_weight > 0:
                losses["entropy"] = self.entropy_weight * self._entropy_gap(unit, codebook)
            return BottleneckOutput(unit + (codes - unit).detach(), ids, losses)

    def lookup(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """Return the unit-length codes of ids, in float32 at least."""
        return _normalize(F.embedding(ids, self.codebook))

    def mix(self, weights: Float[Tensor, "*batch v"]) -> Float[Tensor, "*batch d"]:
        """Return the normalized mixture of the raw codebook rows, for generators that give soft weights instead of ids."""
        with without_autocast(weights.device):
            return _normalize(weights.to(self.codebook.dtype) @ self.codebook)

    def _entropy_gap(self, unit: Tensor, codebook: Tensor) -> Tensor:
        logits = -_squared_distances(unit.flatten(0, -2), codebook) / self.entropy_temperature
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


def _normalize(vectors: Tensor) -> Tensor:
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    return F.normalize(wide, dim=-1, eps=1e-12)
