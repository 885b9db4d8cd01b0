"""How H-Net cuts a sequence into chunks: a router marks where a chunk begins, and what the inner stage makes of the chunks is smoothed
and laid out over their symbols again.

    p_t = (1 - cos(W_q e_(t-1), W_k e_t)) / 2,  p_0 = 1        a boundary where p_t > 0.5
    z'_k = P_k z_k + (1 - P_k) z'_(k-1)                        P_k the p of the k-th boundary
    u_t = z'_j(t) c_t,  j(t) the chunk that t is in            c_t = p_t at boundaries, else 1 - p_t; its value is taken as 1

A chunk begins at its boundary and is told to the inner stage by the encoder's output there. All is causal.

Letters: `b` batch, `n` symbols, `k` chunks, `d` channels.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.mixers.state_space import scan
from hiergen.nn.running.precision import widen, without_autocast

#: Which of two neighbors the router's query is made of. "previous" is the released program, "current" the paper's text.
QueryFrom = Literal["previous", "current"]
#: "float32" is exact; "bfloat16" rounds what goes into it, as the released program does in every number format.
SmootherPrecision = Literal["float32", "bfloat16"]
#: What the ratio loss averages over: symbols, or also padding, as the released program does.
RatioOver = Literal["valid", "padded"]

_LEAST = 1e-4
#: Chunks that the smoother computes from each other at once.
_SMOOTHER_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Where the chunks of one stage begin.

    Attributes:
        probability: p of each symbol, `(b, n)`, 0 to 1.
        is_boundary: Whether a chunk begins at a symbol, `(b, n)`; nowhere in padding.
        lengths: Number of symbols of each row that are no padding, `(b,)`.
    """

    probability: Float[Tensor, "b n"]
    is_boundary: Bool[Tensor, "b n"]
    lengths: Int[Tensor, " b"]

    @property
    def counts(self) -> Int[Tensor, " b"]:
        """Number of chunks of each row."""
        return self.is_boundary.sum(dim=1)

    @property
    def compression(self) -> Float[Tensor, ""]:
        """Symbols per chunk, over the whole batch."""
        return self.lengths.sum() / self.counts.sum()


class RouterState:
    """What the router and the smoother keep of the symbols so far.

    Attributes:
        last: The encoder's last output of each row, `(b, d)`; None before the first symbols.
        has_begun: Whether a row had any symbol, `(b,)`.
        smooth: The last smoothed chunk of each row, `(b, d)`; None before the first symbols.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.has_begun = torch.zeros(batch, dtype=torch.bool, device=device)
        self.last: Tensor | None = None
        self.smooth: Tensor | None = None


class Router(nn.Module):
    """Marks where chunks begin: where neighbors, projected, point into different directions.

    Args:
        dim: Channels.
        query_from: Whether the query is made of the previous or of the current symbol; the key is made of the other one.
    """

    def __init__(self, dim: int, *, query_from: QueryFrom = "previous") -> None:
        super().__init__()
        self.query_from = query_from
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        encoded: Float[Tensor, "b n d"],
        *,
        lengths: Int[Tensor, " b"] | None = None,
        starts: Bool[Tensor, "b n"] | None = None,
        state: RouterState | None = None,
    ) -> Chunks:
        """Return where chunks begin.

        Args:
            encoded: Output of the stage's encoder; with a state, at the next symbols.
            lengths: Number of symbols of each row that are no padding; None is all.
            starts: Where packed sequences begin; a chunk begins there too.
            state: What is kept of the earlier symbols, advanced in place.
        """
        batch, count = encoded.shape[:2]
        before = encoded[:, :1] if state is None or state.last is None else state.last[:, None]
        line = torch.cat((before.to(encoded.dtype), encoded), dim=1)
        previous, current = line[:, :-1], line[:, 1:]
        query, key = (previous, current) if self.query_from == "previous" else (current, previous)
        cosine = F.cosine_similarity(widen(self.query(query)), widen(self.key(key)), dim=-1, eps=1e-12)
        probability = ((1 - cosine) / 2).clamp(0, 1)
        begins = torch.zeros(batch, count, dtype=torch.bool, device=encoded.device)
        begins[:, 0] = True if state is None else ~state.has_begun
        if starts is not None:
            begins = begins | starts
        probability = torch.where(begins, 1.0, probability)
        if lengths is None:
            lengths = torch.full((batch,), count, device=encoded.device)
        is_boundary = (probability > 0.5) & (torch.arange(count, device=encoded.device) < lengths[:, None])
        if state is not None:
            state.last = line.gather(1, lengths[:, None, None].expand(-1, 1, line.shape[2]))[:, 0]
            state.has_begun = state.has_begun | (lengths > 0)
        return Chunks(probability, is_boundary, lengths)


def chunk_index(chunks: Chunks, most: int) -> Int[Tensor, "b k"]:
    """Return the places of the boundaries of each row, in order; behind them those of other symbols, as padding.

    Args:
        chunks: Where chunks begin.
        most: Largest number of chunks of a row.
    """
    return (~chunks.is_boundary).long().argsort(dim=1, stable=True)[:, :most]


def take(x: Float[Tensor, "b n d"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
    """Return the tokens at these places of each row."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def smooth(
    inner: Float[Tensor, "b k d"],
    probability: Float[Tensor, "b k"],
    counts: Int[Tensor, " b"],
    *,
    starts: Bool[Tensor, "b k"] | None = None,
    before: Float[Tensor, "b d"] | None = None,
    precision: SmootherPrecision = "float32",
) -> Float[Tensor, "b k d"]:
    """Return P_k z_k + (1 - P_k) z'_(k-1), at least in float32; behind the chunks of a row its last one is repeated.

    Args:
        inner: The chunks z, output of the inner stage.
        probability: P, clamped to 1e-4 ... 1 - 1e-4, that of a first chunk too.
        counts: Number of chunks of each row.
        starts: Where packed sequences begin, counted in chunks.
        before: The smoothed chunk before the first; None is 0.
        precision: "bfloat16" rounds P, D = -log(1 - P) and z / D to that format, and computes P D (z / D) with exp(-D) for 1 - P.
    """
    with without_autocast(inner.device):
        share, z = widen(probability).clamp(_LEAST, 1 - _LEAST), widen(inner)
        log_decay = torch.log1p(-share)
        added = share[..., None] * z
        if precision == "bfloat16":
            step = (-log_decay).bfloat16()
            coarse = (z / step.to(z.dtype)[..., None]).bfloat16()
            log_decay = -step.to(z.dtype)
            added = (share.bfloat16().to(z.dtype) * step.to(z.dtype))[..., None] * coarse.to(z.dtype)
        valid = torch.arange(z.shape[1], device=z.device) < counts[:, None]
        ones = z.new_ones(*z.shape[:2], 1)
        found, _ = scan(
            (added * valid[..., None])[:, :, None],
            (log_decay * valid)[..., None],
            ones,
            ones,
            state=None if before is None else widen(before)[:, None, :, None],
            starts=starts,
            chunk_size=_SMOOTHER_CHUNK,
        )
    return found[:, :, 0]


def upsample(
    smoothed: Float[Tensor, "b k d"], is_boundary: Bool[Tensor, "b n"], before: Float[Tensor, "b d"] | None
) -> Float[Tensor, "b n d"]:
    """Return the chunk that each symbol is in; `before` is the one that the symbols before the first boundary are in."""
    first = torch.zeros_like(smoothed[:, :1]) if before is None else before[:, None].to(smoothed.dtype)
    return take(torch.cat((first, smoothed), dim=1), is_boundary.long().cumsum(dim=1))


def straight_through(chunks: Chunks) -> Float[Tensor, "b n"]:
    """Return 1 for each symbol, with the gradient of the probability of what was chosen for it."""
    chosen = torch.where(chunks.is_boundary, chunks.probability, 1 - chunks.probability)
    return chosen + (1 - chosen).detach()


def ratio_loss(chunks: Chunks, target: float, over: RatioOver = "valid") -> Float[Tensor, ""]:
    """Return N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)): F the share of boundaries, G the mean of p, N the wanted symbols per chunk.

    On F = G it is smallest at 1 / N, with the value 1.

    Args:
        chunks: Where chunks begin.
        target: N, above 1.
        over: What F and G are means over.
    """
    probability, boundary = chunks.probability, chunks.is_boundary.to(chunks.probability.dtype)
    if over == "valid":
        valid = torch.arange(boundary.shape[1], device=boundary.device) < chunks.lengths[:, None]
        count = chunks.lengths.sum()
        actual, mean = boundary.sum() / count, (probability * valid).sum() / count
    else:
        actual, mean = boundary.mean(), probability.mean()
    return target / (target - 1) * ((target - 1) * actual * mean + (1 - actual) * (1 - mean))


def boundaries_over_symbols(stages: list[Chunks]) -> list[Bool[Tensor, "b n"]]:
    """Return where the chunks of each stage begin among the symbols of the outermost; those of an inner stage are some of the outer's."""
    found: list[Tensor] = []
    for chunks in stages:
        if not found:
            found.append(chunks.is_boundary)
            continue
        outer = found[-1]
        order = outer.long().cumsum(dim=1).sub(1).clamp_min(0)
        inner = F.pad(chunks.is_boundary, (0, max(0, outer.shape[1] - chunks.is_boundary.shape[1])))
        found.append(outer & inner.gather(1, order))
    return found
