"""Synthetic queries, keys and values with the structure that sparse attention lives on: neighbors in a video are alike.

They come from no model but stand in for one, with kinds of heads that are known. Measurements on them say how methods compare,
not what a model gains or loses.

Letters: `h` heads, `n` tokens, `k` channels per head.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hiergen.kernels.pyramid_attention import token_order


def structured_heads(
    grid: tuple[int, int, int],
    *,
    heads: int,
    dim: int,
    rng: torch.Generator,
    noise: float = 0.3,
    sharpness: float = 6.0,
    order: str = "gilbert",
) -> tuple[Float[Tensor, "1 h n k"], Float[Tensor, "1 h n k"], Float[Tensor, "1 h n k"]]:
    """Return q, k, v of (1, heads, tokens, dim), float32, tokens in a locality-keeping order.

    Heads take turns: local (a token attends to its neighborhood), content (to tokens of like content anywhere, content being a
    smooth random field) and mixed.

    Args:
        grid: Frames, rows and columns, in tokens.
        heads: Number of heads.
        dim: Channels per head.
        rng: Draws the fields and the noise.
        noise: Standard deviation of the noise in keys and queries, relative to the structure.
        sharpness: Standard deviation of the scores, in nats.
        order: Order of the tokens.
    """
    place = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in grid), indexing="ij"), -1).reshape(-1, 3)
    queries, keys, values = [], [], []
    for head in range(heads):
        waves = {"local": 10.0, "content": 3.0, "mixed": 5.0}[("local", "content", "mixed")[head % 3]]
        features = _smooth_field(place, dim, waves, rng)
        if head % 3 == 1:
            # Content: many places look alike, so that far keys matter.
            features = torch.sin(3 * features)
        features = features / features.std()
        queries.append(features + noise * _normal(features.shape, rng))
        keys.append(features + noise * _normal(features.shape, rng))
        values.append(_smooth_field(place, dim, 4.0, rng) + noise * _normal(features.shape, rng))
    scattered = [torch.stack(x)[None] for x in (queries, keys, values)]
    scale = sharpness * math.sqrt(dim) / _score_spread(scattered[0], scattered[1], rng)
    index = token_order(order, grid)  # type: ignore[arg-type]
    q, k, v = (index.apply(x, dim=2) for x in scattered)
    return q * scale.sqrt()[:, :, None, None], k * scale.sqrt()[:, :, None, None], v


def _smooth_field(place: Tensor, dim: int, waves: float, rng: torch.Generator) -> Tensor:
    """Return random cosines of position, (tokens, dim): up to about `waves` half periods across the box."""
    frequency = _normal((3, dim), rng) * waves
    phase = torch.rand(dim, generator=rng) * 2 * math.pi
    return torch.cos(place @ frequency + phase) * math.sqrt(2)


def _score_spread(q: Tensor, k: Tensor, rng: torch.Generator) -> Tensor:
    """Return the standard deviation of q·k per head, from sampled pairs."""
    index = torch.randint(q.shape[2], (2, min(4096, 8 * q.shape[2])), generator=rng)
    return (q[:, :, index[0]] * k[:, :, index[1]]).sum(-1).std(dim=-1)


def _normal(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng)
