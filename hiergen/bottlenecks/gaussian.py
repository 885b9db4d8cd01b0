"""The Gaussian (KL) bottleneck of variational autoencoders.

Letters: `b` batch, `n` tokens, `d` channels of a latent, `c` channels of a code.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.bottlenecks.base import Bottleneck, BottleneckOutput

#: Log-variances are clamped to this range, so that neither their exponential nor its inverse overflows.
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class GaussianPosterior:
    """A diagonal Gaussian for every entry of a tensor, in at least float32.

    Attributes:
        mean: Means; also the mode.
        log_variance: Logarithms of the variances, clamped to `LOG_VARIANCE_RANGE`.
    """

    mean: Tensor
    log_variance: Tensor

    def __post_init__(self) -> None:
        mean, log_variance = (x if x.dtype == torch.float64 else x.float() for x in (self.mean, self.log_variance))
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "log_variance", log_variance.clamp(*LOG_VARIANCE_RANGE))

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """Return mean + deviation * noise, the noise drawn in float32 in the shape of the mean."""
        device = self.mean.device if rng is None else rng.device
        noise = torch.randn(self.mean.shape, generator=rng, device=device, dtype=torch.float32)
        return self.mean + (0.5 * self.log_variance).exp() * noise.to(self.mean)

    def kl(self) -> Float[Tensor, ""]:
        """Return the divergence from the standard normal in nats: summed over a sample's entries, averaged over samples."""
        terms = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * terms.sum() / self.mean.shape[0]


class GaussianBottleneck(Bottleneck):
    """Linear to means and log-variances; codes are samples in train mode and means otherwise.

    Args:
        dim: Channels of a latent.
        code_dim: Channels of a code.
        kl_weight: Weight of the divergence as `GaussianPosterior.kl` sums it.
        use_channel_shortcut: Add to the means the averages of `dim / code_dim` consecutive channels of the latent, so that the
            linear learns what is left.

    Raises:
        ValueError: If the shortcut is wanted and `code_dim` does not divide `dim`.

    Source:
        Latent diffusion, arXiv:2112.10752; the shortcut is MingTok's.
    """

    def __init__(self, dim: int, code_dim: int, *, kl_weight: float, use_channel_shortcut: bool = False) -> None:
        super().__init__()
        if use_channel_shortcut and dim % code_dim:
            raise ValueError(f"a channel shortcut needs code_dim to divide dim, got {code_dim} and {dim}")
        self.code_dim = code_dim
        self.kl_weight = kl_weight
        self.use_channel_shortcut = use_channel_shortcut
        self.to_moments = nn.Linear(dim, 2 * code_dim)

    def posterior(self, latents: Float[Tensor, "b n d"]) -> GaussianPosterior:
        """Return the distribution of the codes."""
        mean, log_variance = self.to_moments(latents).chunk(2, dim=-1)
        if self.use_channel_shortcut:
            mean = mean + latents.unflatten(-1, (self.code_dim, -1)).mean(dim=-1)
        return GaussianPosterior(mean, log_variance)

    def forward(self, latents: Float[Tensor, "b n d"], *, rng: torch.Generator | None = None) -> BottleneckOutput:
        """Return codes `(b, n, c)` and the loss "kl"; `rng` draws the codes in train mode."""
        posterior = self.posterior(latents)
        codes = posterior.sample(rng) if self.training else posterior.mean
        return BottleneckOutput(codes, None, {"kl": self.kl_weight * posterior.kl()})
