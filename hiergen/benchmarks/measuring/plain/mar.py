"""A plain transcription of how MAR's program samples, on the weights of a `MaskedAR`: what `hiergen bench mar` compares with.

It rebuilds boolean masks in every step, embeds the prefix and all tokens again, runs the head's last layers for both halves of the
guidance, embeds the timestep for every row, and fetches the schedule's numbers one table at a time.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.generators.masked.diffusion_chain import DiffusionTables, cosine_tables, spaced_timesteps
from hiergen.generators.masked.model import MaskedAR, MaskedARSettings


class PlainSampler:
    """Samples class-conditional tokens as the released program does.

    Args:
        model: A class-conditional model of a single stage.

    Raises:
        ValueError: If the model takes features or generates level by level.
    """

    def __init__(self, model: MaskedAR) -> None:
        if model.prefix.num_classes is None or len(model.stages) != 1:
            raise ValueError("the plain sampler knows class labels and order='random' only")
        self.model = model

    @torch.no_grad()
    def generate(
        self,
        labels: Int[Tensor, " b"],
        settings: MaskedARSettings,
        *,
        rng: torch.Generator,
        shared_noise: bool = False,
    ) -> Float[Tensor, "b n c"]:
        """Return tokens (standardized latents).

        Args:
            shared_noise: Draw what `MaskedAR.generate` draws, so that the results agree, instead of drawing for both halves of the
                guidance in every step of the head.
        """
        model, batch, num_tokens = self.model, len(labels), self.model.stages[0].length
        device, channels = labels.device, model.specs[0].dim
        steps = settings.steps_of(0, 1)
        chain = _spaced_chain(model, settings)
        orders = torch.rand(batch, num_tokens, generator=rng, device=device).argsort(dim=1, stable=True)
        tokens = torch.zeros(batch, num_tokens, channels, device=device)
        mask = torch.ones(batch, num_tokens, dtype=torch.bool, device=device)
        for step in range(steps):
            left = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / steps))
            left = max(1, min(int(mask[0].sum()) - 1, left))
            next_mask = torch.zeros_like(mask).scatter(1, orders[:, :left], True)
            predict = mask if step == steps - 1 else mask ^ next_mask
            rows, mask_rows, predict_rows, condition = tokens, mask, predict, self._buffer(labels)
            if settings.is_guided:
                condition = torch.cat((condition, model.prefix.null.expand(*condition.shape)))
                rows, mask_rows, predict_rows = (torch.cat((x, x)) for x in (tokens, mask, predict))
            z = self._decode(rows, mask_rows, condition)[predict_rows.nonzero(as_tuple=True)]
            scale = 1 + (settings.guidance_scale - 1) * (num_tokens - left) / num_tokens
            noise = None
            if shared_noise:
                count = int(predict[0].sum())
                drawn = torch.randn(settings.head_steps, batch, count, channels, generator=rng, device=device)
                end = 0 if step == steps - 1 else left
                by_place = orders[:, end : end + count].argsort(dim=1)
                noise = drawn.gather(2, by_place[None, :, :, None].expand_as(drawn)).flatten(1, 2)
            tokens[predict.nonzero(as_tuple=True)] = self._head(z, chain, settings, scale, rng, noise)
            mask = next_mask
        return tokens

    def _buffer(self, labels: Tensor) -> Tensor:
        return self.model.prefix.class_embedding(labels)[:, None].expand(-1, self.model.prefix.num_buffer, -1)

    def _decode(
        self, tokens: Float[Tensor, "b n c"], mask: Bool[Tensor, "b n"], condition: Float[Tensor, "b p d"]
    ) -> Float[Tensor, "b n w"]:
        net = self.model.transformer
        batch, prefix = len(tokens), condition.shape[1]
        x = torch.cat((condition, net.token_proj(tokens.to(condition.dtype))), dim=1)
        x = net.token_norm(x + net.encoder_positions)
        kept = torch.cat((torch.ones(batch, prefix, dtype=torch.bool, device=mask.device), ~mask), dim=1)
        x = x[kept].reshape(batch, -1, x.shape[-1])
        for block in net.encoder:
            x = block(x)
        x = net.decoder_proj(net.encoder_norm(x))
        full = net.mask_token.repeat(batch, kept.shape[1], 1).to(x.dtype)
        full[kept] = x.reshape(-1, x.shape[-1])
        x = full + net.decoder_positions
        for block in net.decoder:
            x = block(x)
        return net.decoder_norm(x)[:, prefix:] + net.query_positions

    def _head(
        self,
        z: Tensor,
        chain: tuple[tuple[int, ...], DiffusionTables],
        settings: MaskedARSettings,
        scale: float,
        rng: torch.Generator,
        shared: Tensor | None,
    ) -> Tensor:
        """Return a token for each row of the first half of `z` (of all of `z` without guidance)."""
        visited, tables = chain
        halves = 2 if settings.is_guided else 1
        rows, channels = len(z) // halves, self.model.specs[0].dim
        start = torch.randn(rows, channels, generator=rng, device=z.device) if shared is None else shared[0]
        x = torch.cat([start] * halves)
        for number, index in enumerate(reversed(range(len(visited)))):
            t = torch.full((len(x),), index, device=z.device)
            eps, fraction = self._net(x, torch.tensor(visited, device=z.device)[t], z, scale).chunk(2, dim=-1)
            if shared is None:
                fresh = torch.randn(x.shape, generator=rng, device=z.device)
            else:
                fresh = torch.cat([shared[min(number + 1, len(visited) - 1)]] * halves)
            share = (fraction + 1) / 2
            log_variance = share * _at(tables.log_variance_max, t) + (1 - share) * _at(tables.log_variance_min, t)
            guess = _at(tables.x0_from_xt, t) * x - _at(tables.x0_from_eps, t) * eps
            mean = _at(tables.mean_x0, t) * guess + _at(tables.mean_xt, t) * x
            active = (t != 0).float()[:, None]
            x = mean + active * torch.exp(0.5 * log_variance) * fresh * settings.temperature
        return x[:rows]

    def _net(self, x: Tensor, t: Tensor, z: Tensor, scale: float) -> Tensor:
        head = self.model.head
        is_guided = len(x) == len(z) and scale != 1
        if is_guided:
            x = torch.cat((x[: len(x) // 2],) * 2)
        y = head.time(t) + head.condition(z)
        h = head.input(x)
        for block in head.blocks:
            h = block(h, block.modulation(F.silu(y)))
        shift, scaling = head.output_modulation(F.silu(y)).chunk(2, dim=-1)
        output = head.output(head.output_norm(h) * (1 + scaling) + shift)
        if not is_guided:
            return output
        eps, rest = output.chunk(2, dim=-1)
        conditional, null = eps.chunk(2)
        guided = null + scale * (conditional - null)
        return torch.cat((torch.cat((guided, guided)), rest), dim=-1)


def _spaced_chain(model: MaskedAR, settings: MaskedARSettings) -> tuple[tuple[int, ...], DiffusionTables]:
    visited = spaced_timesteps(settings.head_steps, model.head.num_timesteps, settings.head_spacing)
    abar = cosine_tables(model.head.num_timesteps).abar[list(visited)]
    return visited, DiffusionTables.from_betas(1 - abar / torch.cat((torch.ones_like(abar[:1]), abar[:-1])))


def _at(table: Tensor, t: Tensor) -> Tensor:
    return table.to(t.device)[t].float()[:, None]
