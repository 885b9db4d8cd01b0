"""The noise schedule of the per-token diffusion head: tables in float64, the training loss, the coefficients of the samplers.

Nothing here holds parameters. Letters: `T` steps of the full chain, `c` channels of a token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hiergen.checked import Checked, NotNegative, Share

HeadSamplerKind = Literal["ddpm", "ddim"]
HeadSpacing = Literal["linspace", "leading"]


@dataclasses.dataclass(frozen=True)
class HeadSampler(Checked):
    """How the head turns noise into a token.

    Attributes:
        kind: "ddpm" is the ancestral sampler with the learned variance; "ddim" has the variance that `eta` sets.
        steps: Network evaluations per token, at least 2 and at most the length of the chain.
        spacing: "linspace" (the released program's) rounds evenly spaced steps from the first to the last. "leading" takes every
            k-th from 0 on and so leaves out the very last, at which an error of the predicted noise is amplified 2e4 times: heads
            that were trained briefly need it.
        temperature: Factor on the noise of every step (not on the noise that the chain starts from).
        eta: DDIM's noise, 0 (none) to 1.

    Raises:
        ValueError: If an attribute is out of range.
    """

    kind: HeadSamplerKind = "ddpm"
    steps: int = 100
    spacing: HeadSpacing = "linspace"
    temperature: NotNegative = 1.0
    eta: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"head_steps is {self.steps}, expected at least 2")
        if self.eta > 0 and self.kind == "ddpm":
            raise ValueError(f"eta is {self.eta} with head_sampler 'ddpm', expected 0: only 'ddim' reads it")


@dataclasses.dataclass(frozen=True)
class StepCoefficients:
    """One sampler step as plain numbers: x <- x_scale x + eps_scale eps + sigma n.

    Attributes:
        timestep: Step of the full chain that the network is told.
        x_scale: Factor of the present value.
        eps_scale: Factor of the predicted noise.
        log_variance_range: Lower and upper end of the learned log variance; None where sigma is fixed.
        sigma: Factor of fresh noise: of a unit normal where the variance is fixed, of the learned deviation otherwise.
    """

    timestep: int
    x_scale: float
    eps_scale: float
    log_variance_range: tuple[float, float] | None
    sigma: float


@dataclasses.dataclass(frozen=True)
class DiffusionTables:
    """What follows from the betas of a chain, float64 on the CPU, one entry per step.

    Attributes:
        signal: sqrt(abar), the factor of x_0 in x_t.
        noise: sqrt(1 - abar), the factor of the noise in x_t.
        x0_from_xt: 1 / sqrt(abar).
        x0_from_eps: sqrt(1 / abar - 1).
        mean_x0: Factor of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        mean_xt: Factor of x_t in that mean.
        log_variance_min: log of that posterior's variance; the zero at t = 0 is replaced by the value at t = 1.
        log_variance_max: log beta.
        abar: Cumulative product of 1 - beta.
        abar_previous: The same one step earlier, 1 before the first.
    """

    signal: Tensor
    noise: Tensor
    x0_from_xt: Tensor
    x0_from_eps: Tensor
    mean_x0: Tensor
    mean_xt: Tensor
    log_variance_min: Tensor
    log_variance_max: Tensor
    abar: Tensor
    abar_previous: Tensor

    @classmethod
    def from_betas(cls, betas: Float[Tensor, " T"]) -> DiffusionTables:
        abar = torch.cumprod(1 - betas, dim=0)
        previous = torch.cat((torch.ones_like(abar[:1]), abar[:-1]))
        variance = betas * (1 - previous) / (1 - abar)
        return cls(
            signal=abar.sqrt(),
            noise=(1 - abar).sqrt(),
            x0_from_xt=(1 / abar).sqrt(),
            x0_from_eps=(1 / abar - 1).sqrt(),
            mean_x0=betas * previous.sqrt() / (1 - abar),
            mean_xt=(1 - previous) * (1 - betas).sqrt() / (1 - abar),
            log_variance_min=torch.cat((variance[1:2], variance[1:])).log(),
            log_variance_max=betas.log(),
            abar=abar,
            abar_previous=previous,
        )


def cosine_betas(num_timesteps: int) -> Float[Tensor, " T"]:
    """Return the betas of the cosine schedule, float64 on the CPU.

    Source:
        Improved Denoising Diffusion Probabilistic Models, arXiv:2102.09672, eq. 17; betas capped at 0.999.
    """
    u = torch.arange(num_timesteps + 1, dtype=torch.float64, device="cpu") / num_timesteps
    abar = ((u + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


@functools.lru_cache(maxsize=8)
def cosine_tables(num_timesteps: int) -> DiffusionTables:
    """Return the tables of the full cosine chain; do not write to them."""
    return DiffusionTables.from_betas(cosine_betas(num_timesteps))


def spaced_timesteps(steps: int, num_timesteps: int, spacing: HeadSpacing) -> tuple[int, ...]:
    """Return which steps of the full chain a shorter one visits, ascending.

    Raises:
        ValueError: If `steps` is more than the chain holds, or if "leading" finds no whole stride that gives so many.
    """
    if not 2 <= steps <= num_timesteps:
        raise ValueError(f"head_steps is {steps}, expected 2 to {num_timesteps}")
    if spacing == "leading":
        for stride in range(1, num_timesteps):
            if len(range(0, num_timesteps, stride)) == steps:
                return tuple(range(0, num_timesteps, stride))
        raise ValueError(f"head_steps is {steps}: no whole stride over {num_timesteps} steps gives so many")
    stride_between = (num_timesteps - 1) / (steps - 1)
    position, visited = 0.0, []
    for _ in range(steps):
        # Summed, not multiplied: where a position falls on a half, the rounding error of the sum decides in published samples.
        visited.append(round(position))
        position += stride_between
    return tuple(visited)


@functools.lru_cache(maxsize=64)
def sampler_coefficients(sampler: HeadSampler, num_timesteps: int) -> tuple[StepCoefficients, ...]:
    """Return the steps of a sampler in the order they are run, from the noisiest to the cleanest.

    Source:
        arXiv:2102.09672 (respaced ancestral sampling); DDIM, arXiv:2010.02502, eq. 12 and 16.
    """
    visited = spaced_timesteps(sampler.steps, num_timesteps, sampler.spacing)
    abar = cosine_tables(num_timesteps).abar[list(visited)]
    previous = torch.cat((torch.ones_like(abar[:1]), abar[:-1]))
    tables = DiffusionTables.from_betas(1 - abar / previous)
    make = _ancestral_step if sampler.kind == "ddpm" else _ddim_step
    return tuple(make(tables, index, visited[index], sampler) for index in reversed(range(sampler.steps)))


def _ancestral_step(tables: DiffusionTables, index: int, timestep: int, sampler: HeadSampler) -> StepCoefficients:
    mean_x0 = float(tables.mean_x0[index])
    return StepCoefficients(
        timestep=timestep,
        x_scale=mean_x0 * float(tables.x0_from_xt[index]) + float(tables.mean_xt[index]),
        eps_scale=-mean_x0 * float(tables.x0_from_eps[index]),
        log_variance_range=(float(tables.log_variance_min[index]), float(tables.log_variance_max[index])),
        sigma=sampler.temperature if index else 0.0,
    )


def _ddim_step(tables: DiffusionTables, index: int, timestep: int, sampler: HeadSampler) -> StepCoefficients:
    abar, previous = float(tables.abar[index]), float(tables.abar_previous[index])
    sigma = sampler.eta * math.sqrt((1 - previous) / (1 - abar)) * math.sqrt(1 - abar / previous)
    signal = math.sqrt(previous)
    return StepCoefficients(
        timestep=timestep,
        x_scale=signal * float(tables.x0_from_xt[index]),
        eps_scale=math.sqrt(1 - previous - sigma**2) - signal * float(tables.x0_from_eps[index]),
        log_variance_range=None,
        sigma=sampler.temperature * sigma if index else 0.0,
    )


def add_noise(
    x0: Float[Tensor, "*rows c"],
    timesteps: Int[Tensor, "*rows"],
    noise: Float[Tensor, "*rows c"],
    *,
    num_timesteps: int,
) -> Float[Tensor, "*rows c"]:
    """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise."""
    rows = _gather(timesteps, x0.dtype, num_timesteps)
    return rows["signal"] * x0 + rows["noise"] * noise


def diffusion_loss(
    output: Float[Tensor, "*rows two_c"],
    x0: Float[Tensor, "*rows c"],
    x_t: Float[Tensor, "*rows c"],
    timesteps: Int[Tensor, "*rows"],
    noise: Float[Tensor, "*rows c"],
    *,
    num_timesteps: int,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    """Return the two terms of the training loss, each a mean over channels: squared error of the noise, variational bound in bits.

    The bound sees the predicted noise without gradient, so it trains the variance only. It is *not* scaled down by the length of
    the chain.

    Args:
        output: The network's output, predicted noise and variance fraction in halves; the fraction -1 to 1 spans the range.

    Source:
        arXiv:2102.09672, eq. 14-16, in the form that MAR trains with.
    """
    eps, fraction = output.chunk(2, dim=-1)
    rows = _gather(timesteps, x0.dtype, num_timesteps)
    true_mean = rows["mean_x0"] * x0 + rows["mean_xt"] * x_t
    guess = rows["x0_from_xt"] * x_t - rows["x0_from_eps"] * eps.detach()
    mean = rows["mean_x0"] * guess + rows["mean_xt"] * x_t
    share = (fraction + 1) / 2
    log_variance = share * rows["log_variance_max"] + (1 - share) * rows["log_variance_min"]
    divergence = _normal_kl(true_mean, rows["log_variance_min"], mean, log_variance).mean(-1)
    likelihood = _discretized_log_likelihood(x0, mean, log_variance / 2).mean(-1)
    bound = torch.where(timesteps == 0, -likelihood, divergence) / math.log(2)
    return (noise - eps).square().mean(-1), bound


def _normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    ratio = (log_variance - other_log_variance).exp()
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + ratio + distance - 1)


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of the bin of width 2/255 around x. Made for pixels; tokens have no bins, but published losses contain it."""
    inverse = (-log_scale).exp()
    upper = _normal_cdf(inverse * (x - mean + 1 / 255))
    lower = _normal_cdf(inverse * (x - mean - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    above = (1 - lower).clamp(min=1e-12).log()
    below = upper.clamp(min=1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gather(timesteps: Tensor, dtype: torch.dtype, num_timesteps: int) -> dict[str, Tensor]:
    """Return every table at the given steps, `(..., 1)`, in the dtype that the loss is computed in."""
    names, table = _stacked(num_timesteps, timesteps.device, dtype)
    return dict(zip(names, table[:, timesteps].unsqueeze(-1), strict=True))


@functools.lru_cache(maxsize=8)
def _stacked(num_timesteps: int, device: torch.device, dtype: torch.dtype) -> tuple[tuple[str, ...], Tensor]:
    tables = cosine_tables(num_timesteps)
    names = tuple(field.name for field in dataclasses.fields(tables))
    return names, torch.stack([getattr(tables, name) for name in names]).to(device=device, dtype=dtype)
