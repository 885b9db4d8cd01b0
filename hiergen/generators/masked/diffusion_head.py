"""The small network that denoises one continuous token given what the transformer knows about it.

The transformer predicts a vector z for every token; this head turns z into a distribution over the token's value by diffusion. Schedule and
loss are in `diffusion_chain`. Letters: `b` batch, `k` tokens, `c` channels of a token, `d` channels of z, `w` width of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.generators.guidance import guide
from hiergen.generators.masked.diffusion_chain import (
    HeadSampler,
    StepCoefficients,
    add_noise,
    diffusion_loss,
    sampler_coefficients,
)
from hiergen.nn.blocks.layers import Linear
from hiergen.nn.initialization import xavier_linears
from hiergen.nn.running.precision import KeepsFloat32, without_autocast

#: Largest number of modulation values that `DiffusionHead.sample` holds at a time (64 MiB in float32).
_MODULATION_BUDGET = 1 << 24


class TimeEmbedding(nn.Module):
    """Sinusoids of a time, [cos | sin], through a two-layer MLP."""

    def __init__(self, width: int, *, num_frequencies: int = 128) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        first, last = Linear(2 * num_frequencies, width), Linear(width, width)
        for layer in (first, last):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, time: Tensor) -> Tensor:
        """Return `(..., w)` for times `(...)`; the published range is 0 to 999."""
        dtype = next(self.parameters()).dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        # The frequencies are rounded to the wide type before they meet times near 1000, which moves the angles by 5e-5 in float32.
        # Trained weights know these angles, so the order of the operations stays.
        index = torch.arange(self.num_frequencies, dtype=wide, device=time.device)
        angles = time.to(wide)[..., None] * torch.exp(-math.log(10000) * index / self.num_frequencies)
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype))


class HeadBlock(nn.Module):
    """h + gate MLP(LN(h) (1 + scale) + shift): a residual block whose modulation comes from outside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.modulation = Linear(width, 3 * width)

    def forward(self, h: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return h + gate * self.mlp(self.norm(h) * (1 + scale) + shift)


class DiffusionHead(KeepsFloat32):
    """Predicts noise and variance of a noisy token from z and the timestep, trains and samples.

    It runs in the precision of its weights with autocast switched off: near the end of the chain an error of the predicted noise is
    amplified 2e4 times. So its weights stay in float32.

    Args:
        token_dim: Channels of a token.
        condition_dim: Channels of z.
        width: Width of the residual blocks.
        depth: Number of residual blocks.
        num_timesteps: Length of the full chain.

    Source:
        Autoregressive Image Generation without Vector Quantization, arXiv:2406.11838, section 3.3.
    """

    def __init__(
        self, token_dim: int, condition_dim: int, *, width: int, depth: int, num_timesteps: int = 1000
    ) -> None:
        super().__init__()
        self.token_dim, self.num_timesteps = token_dim, num_timesteps
        self._compiled: Callable[..., Tensor] | None = None
        self.time = TimeEmbedding(width)
        self.condition = Linear(condition_dim, width)
        self.input = Linear(token_dim, width)
        self.blocks: Any = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.output_norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.output_modulation = Linear(width, 2 * width)
        self.output = Linear(width, 2 * token_dim)
        self._initialize()

    def _initialize(self) -> None:
        xavier_linears(self.condition, self.input, *(block.mlp for block in self.blocks))
        # Zero, so that an untrained head is the identity in every block and predicts zero noise.
        for layer in (self.output, *self._modulators()):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def _modulators(self) -> list[Any]:
        return [*(block.modulation for block in self.blocks), self.output_modulation]

    def forward(
        self, x: Float[Tensor, "*rows c"], timesteps: Int[Tensor, "*rows"], z: Float[Tensor, "*rows d"]
    ) -> Float[Tensor, "*rows two_c"]:
        """Return predicted noise and variance fraction, in halves of the channels, in the dtype of the weights."""
        with without_autocast(x.device):
            dtype = self.input.weight.dtype
            embedding = self.time(timesteps) + self.condition(z.to(dtype))
            return self._denoise(self.input(x.to(dtype)), self._modulations(embedding))

    def _modulations(self, embedding: Tensor) -> list[Tensor]:
        active = F.silu(embedding)
        return [layer(active) for layer in self._modulators()]

    def _denoise(self, h: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        for block, modulation in zip(self.blocks, modulations, strict=False):
            h = block(h, modulation)
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.output(self.output_norm(h) * (1 + scale) + shift)

    def loss(
        self,
        x0: Float[Tensor, "*rows c"],
        z: Float[Tensor, "*rows d"],
        timesteps: Int[Tensor, "*rows"],
        noise: Float[Tensor, "*rows c"],
    ) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
        """Return squared error of the noise and variational bound (bits) of every row, both means over channels, float32 or wider."""
        with without_autocast(x0.device):
            wide = torch.promote_types(x0.dtype, torch.float32)
            x0, noise = x0.to(wide), noise.to(wide)
            x_t = add_noise(x0, timesteps, noise, num_timesteps=self.num_timesteps)
            output = self(x_t, timesteps, z).to(wide)
            return diffusion_loss(output, x0, x_t, timesteps, noise, num_timesteps=self.num_timesteps)

    def time_table(self, sampler: HeadSampler, device: torch.device) -> Float[Tensor, "steps w"]:
        """Return the embedded timesteps of a sampler in the order they are run; the same for every token and every call."""
        steps = sampler_coefficients(sampler, self.num_timesteps)
        with without_autocast(device):
            return self.time(torch.tensor([step.timestep for step in steps], device=device))

    def sample(
        self,
        z: Float[Tensor, "b k d"],
        noise: Float[Tensor, "steps b k c"],
        sampler: HeadSampler,
        *,
        null_z: Float[Tensor, "b k d"] | None = None,
        guidance: float = 1.0,
        times: Float[Tensor, "steps w"] | None = None,
    ) -> Float[Tensor, "b k c"]:
        """Return one sample per row.

        With `null_z` the predicted noise is guided, both predictions being made on the same noisy token; the variance is that of the
        condition, unguided.

        Args:
            noise: Unit normal; `noise[0]` is where the chains start, `noise[i]` is added after step `i - 1`. Nothing is added after
                the last step. Its dtype, float32 or wider, is the dtype of the result.
            times: `time_table` of the sampler, where a caller samples more than once.

        Raises:
            ValueError: If `noise` does not hold one entry per step.
        """
        steps = sampler_coefficients(sampler, self.num_timesteps)
        if noise.shape[0] != len(steps):
            raise ValueError(f"noise holds {noise.shape[0]} steps, the sampler takes {len(steps)}")
        with without_autocast(z.device):
            dtype = self.input.weight.dtype
            rows = z[None] if null_z is None else torch.stack((z, null_z))
            condition = self.condition(rows.to(dtype))
            # Everything the blocks need besides the token itself is known before the chain starts: one large product, not one per step.
            table = self.time_table(sampler, z.device) if times is None else times
            values = condition.numel() * (3 * len(self.blocks) + 2)
            chunk = max(1, _MODULATION_BUDGET // max(1, values))
            x = noise[0]
            for start in range(0, len(steps), chunk):
                part = table[start : start + chunk]
                modulations = self._modulations(part[:, None, None, None] + condition)
                for offset in range(len(part)):
                    index = start + offset
                    # Nothing is added after the last step, nor by a sampler without noise.
                    fresh = noise[index + 1] if index + 1 < len(steps) and steps[index].sigma else None
                    x = self._advance(x, [m[offset] for m in modulations], steps[index], fresh, guidance)
            return x

    def compile_sampling(self, **options: Any) -> None:
        """Compile the step that `sample` repeats: one graph whatever the step, the guidance and the number of tokens.

        Args:
            options: Arguments of `torch.compile`.
        """
        self._compiled = torch.compile(self._step, fullgraph=True, dynamic=True, **options)

    def _advance(
        self, x: Tensor, modulations: list[Tensor], step: StepCoefficients, noise: Tensor | None, guidance: float
    ) -> Tensor:
        is_learned = step.log_variance_range is not None
        numbers = (step.x_scale, step.eps_scale, step.sigma, *(step.log_variance_range or (0.0, 0.0)), guidance)
        if self._compiled is None:
            return self._step(x, modulations, numbers, noise, is_learned)
        # As a tensor: a graph holds plain numbers fast and would be compiled again for each step.
        table = torch.tensor(numbers, dtype=torch.float64).to(x.device, x.dtype, non_blocking=True)
        # Where CUDA graphs are in use, the next call writes over this one's result.
        torch.compiler.cudagraph_mark_step_begin()
        return self._compiled(x, modulations, table, noise, is_learned).clone()

    def _step(
        self,
        x: Tensor,
        modulations: list[Tensor],
        numbers: tuple[float, ...] | Tensor,
        noise: Tensor | None,
        is_learned: bool,
    ) -> Tensor:
        """Return the token after one sampler step; modulations are `(1, ...)`, or `(2, ...)` with the null condition second."""
        x_scale, eps_scale, sigma, low, high, guidance = numbers
        output = self._denoise(self.input(x.to(self.input.weight.dtype)), modulations).to(x.dtype)
        eps, fraction = output.chunk(2, dim=-1)
        guided = eps[0] if output.shape[0] == 1 else guide(eps[0], eps[1], guidance)
        mean = x_scale * x + eps_scale * guided
        if noise is None:
            return mean
        if not is_learned:
            return mean + sigma * noise
        share = (fraction[0] + 1) / 2
        return mean + sigma * (0.5 * (share * high + (1 - share) * low)).exp() * noise
