"""VAR's sampler the straightforward way, as a baseline: keys and values are joined to the earlier ones, all else is computed at every step.

It reads the weights of a `NextScaleAR` under their official names, so that both run side by side on the same numbers. Not for use
elsewhere: `NextScaleAR.generate` gives the same ids.

Letters: `b` batch (twice the labels), `n` positions of a level, `d` channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.var import generator_to_official
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.generators.sampling import truncate


class PlainSampler:
    """Samples from a `NextScaleAR` by a transcription of the published procedure.

    Every block computes the modulation of the class anew at every level, and joins its keys and values to a growing tensor. Both halves
    of the batch run with any guidance scale, and the draw is `torch.multinomial`.

    Args:
        model: Whose weights to use, shared.

    Source:
        VAR, arXiv:2404.02905. Written from a description of the official sampler.
    """

    def __init__(self, model: NextScaleAR) -> None:
        self.weights = {name: value.to(model.device) for name, value in generator_to_official(model).items()}
        self.quantizer = model.quantizer
        self.depth, self.num_heads = model.config["depth"], model.config["num_heads"]
        self.num_classes = model.config["num_classes"]

    @torch.no_grad()
    def generate(self, labels: Tensor, settings: NextScaleSettings, *, rng: torch.Generator | None = None) -> Tensor:
        """Return ids `(b, n)` of all levels of class labels; `smooth`, `greedy`, `num_levels` and `use_cache` are not read."""
        w, last = self.weights, len(self.quantizer.grids) - 1
        condition = w["class_emb.weight"][torch.cat((labels, torch.full_like(labels, self.num_classes)))]
        cache: list[tuple[Tensor, Tensor] | None] = [None] * self.depth
        total, ids, start = self.quantizer.zeros(len(labels)), [], 0
        for level, size in enumerate(self.quantizer.sizes):
            if level:
                pooled = self.quantizer.pool(total, level).to(condition.dtype)
                x = self._linear(torch.cat((pooled, pooled)), "word_embed")
            else:
                x = condition[:, None] + w["pos_start"]
            x = x + w["lvl_embed.weight"][level] + w["pos_1LC"][:, start : start + size]
            conditional, null = self._logits(x, condition, cache).float().chunk(2)
            rise = (settings.guidance_scale - 1) * level / max(last, 1)
            logits = truncate((1 + rise) * conditional - rise * null, settings)
            drawn = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1, generator=rng).view(len(labels), -1)
            total = total + self.quantizer.grow(self.quantizer.embed(drawn), level)
            ids.append(drawn)
            start += size
        return torch.cat(ids, dim=1)

    def _logits(self, x: Tensor, condition: Tensor, cache: list[tuple[Tensor, Tensor] | None]) -> Tensor:
        silu, dim = F.silu(condition), x.shape[-1]
        for index in range(self.depth):
            name = f"blocks.{index}."
            if f"{name}ada_gss" in self.weights:
                parts = self.weights[f"{name}ada_gss"] + self._linear(silu, "shared_ada_lin.1").view(-1, 1, 6, dim)
            else:
                parts = self._linear(silu, f"{name}ada_lin.1").view(-1, 1, 6, dim)
            gate1, gate2, scale1, scale2, shift1, shift2 = parts.unbind(2)
            normed = F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale1) + shift1
            attended, cache[index] = self._attention(normed, f"{name}attn.", cache[index])
            x = x + gate1 * attended
            hidden = F.gelu(
                self._linear(F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale2) + shift2, f"{name}ffn.fc1"),
                approximate="tanh",
            )
            x = x + gate2 * self._linear(hidden, f"{name}ffn.fc2")
        scale, shift = self._linear(silu, "head_nm.ada_lin.1")[:, None].chunk(2, dim=-1)
        return self._linear(F.layer_norm(x, (dim,), eps=1e-6) * (1 + scale) + shift, "head")

    def _attention(
        self, x: Tensor, name: str, earlier: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        w = self.weights
        bias = torch.cat((w[f"{name}q_bias"], w[f"{name}zero_k_bias"].to(x.dtype), w[f"{name}v_bias"]))
        qkv = F.linear(x, w[f"{name}mat_qkv.weight"], bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(query.shape[-1])
        if f"{name}scale_mul_1H11" in w:
            query = F.normalize(query, dim=-1) * w[f"{name}scale_mul_1H11"].clamp(max=math.log(100)).exp()
            key, scale = F.normalize(key, dim=-1), 1.0
        if earlier is not None:
            key, value = torch.cat((earlier[0], key), dim=2), torch.cat((earlier[1], value), dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)
        return self._linear(attended, f"{name}proj"), (key, value)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
