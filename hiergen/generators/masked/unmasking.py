"""How `MaskedAR` reveals tokens while it generates: who takes which steps where tokens are given, and the state that a step changes.

Tokens that are given are visible from the start. The schedule, and the r of guidance, count the tokens of a stage that a sample has to make;
samples with equally many are a group and share their passes, so that no sample depends on what is given in another.

Letters: `b` batch, `g` samples of a group, `n` tokens, `k` tokens of a stage or a step, `c` channels of a token, `p` rows of the condition, `d` width of the encoder.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hiergen.generators.masked.orders import Stage, random_orders, unmask_counts
from hiergen.generators.masked.settings import MaskedARSettings
from hiergen.generators.masked.transformer import gather_tokens, scatter_tokens
from hiergen.seeding import Rng, draw_normal, draws_of

if TYPE_CHECKING:
    from hiergen.generators.masked.model import MaskedAR


@dataclasses.dataclass(frozen=True)
class Group:
    """Samples that have equally many tokens of a stage to make.

    Attributes:
        samples: Numbers of the samples, on the CPU; a slice where they are the whole batch.
        counts: Their steps: `unmask_counts`.
        scales: Guidance scale of each step.
    """

    samples: slice | Tensor
    counts: tuple[tuple[int, int, int], ...]
    scales: tuple[float, ...]


def group_samples(
    stage: Stage, num_steps: int, settings: MaskedARSettings, given: Bool[Tensor, "b n"] | None
) -> list[Group]:
    """Return the groups of a stage; samples all of whose tokens are given are in none.

    Args:
        stage: The stage.
        num_steps: Most steps of it.
        settings: What scales the guidance.
        given: Where tokens of all levels are given (this is read by the host); None for nowhere.
    """
    missing = [stage.num_tokens] if given is None else (~_own(stage, given)).sum(dim=1).tolist()
    groups = []
    for size in sorted({*missing} - {0}):
        counts = unmask_counts(size, num_steps)
        members = [sample for sample, count in enumerate(missing) if count == size]
        is_whole = given is None or len(members) == len(missing)
        samples = slice(None) if is_whole else torch.tensor(members)
        groups.append(Group(samples, counts, settings.step_scales(counts)))
    return groups


def draw_orders(
    batch: int, stage: Stage, given: Bool[Tensor, "b n"] | None, *, rng: Rng | None, device: torch.device
) -> Int[Tensor, "b k"]:
    """Return `random_orders` in which the tokens that are given stand behind the stage's others: they are known first."""
    if given is None:
        return random_orders(batch, stage, rng=rng, device=device)
    own = _own(stage, given)
    order = random_orders(batch, stage, rng=draws_of(rng, ~own.all(dim=1)), device=device)
    drawn, rest = order.split([stage.num_tokens, stage.length - stage.num_tokens], dim=1)
    places = given.gather(1, drawn).int().argsort(dim=1, stable=True)
    return torch.cat((drawn.gather(1, places), rest), dim=1)


def _own(stage: Stage, given: Tensor) -> Tensor:
    return given[:, stage.length - stage.num_tokens : stage.length]


class Unmasking:
    """The state of a generation.

    Args:
        model: The generator.
        prefix: Embedded prefix `(b, p, d)`, or with guidance that of "no condition" below it, `(2 b, p, d)`.
        settings: How to generate.
        rng: Source of the noise.
        dtype: Number format of the tokens.

    Attributes:
        tokens: Standardized tokens `(b, n, c)`, 0 where hidden. Steps do not change the tensor but replace it.
    """

    def __init__(
        self, model: MaskedAR, prefix: Tensor, settings: MaskedARSettings, *, rng: Rng | None, dtype: torch.dtype
    ) -> None:
        self._model, self._settings, self._rng = model, settings, rng
        self._prefix = prefix.unflatten(0, (2 if settings.is_guided else 1, -1))
        self._sampler = settings.sampler()
        self._times = model.head.time_table(self._sampler, prefix.device)
        size = (self._prefix.shape[1], model.stages[-1].length)
        self.tokens = torch.zeros(*size, model.specs[0].dim, device=prefix.device, dtype=dtype)
        # A token's input row never changes once the token is known, nor does the prefix: both are computed once.
        self._rows = torch.zeros(*size, prefix.shape[-1], device=prefix.device, dtype=prefix.dtype)

    def put(self, values: Float[Tensor, "b k c"]) -> None:
        """Put standardized values in the place of the first tokens."""
        values = values.to(self.tokens.dtype)
        places = torch.arange(values.shape[1], device=values.device).expand(len(values), -1)
        self._keep(slice(None), places, values)

    def reveal(self, group: Group, step: int, order: Int[Tensor, "b n"], length: int) -> Float[Tensor, "g k c"]:
        """Make the tokens of a step of a group, and return them.

        Args:
            group: Who takes the step.
            step: Number of the step.
            order: Places of the stage's tokens, the ones that stay hidden longest first.
            length: Places of the stage.
        """
        samples, (before, after, _) = group.samples, group.counts[step]
        queries, visible = order[samples][:, after:before], order[samples][:, before:]
        prefix = self._prefix[:, samples]
        # Both halves of the guidance share tokens and places.
        rows = gather_tokens(self._rows[samples], visible)
        seen = (torch.cat((x,) * len(prefix)) for x in (rows, visible, queries))
        z = self._model.transformer(prefix.flatten(0, 1), *seen, length)  # (halves g, before - after, w)
        values = self._model.head.sample(
            z[: len(queries)],
            self._noise(samples, before - after),
            self._sampler,
            null_z=z[len(queries) :] if len(prefix) > 1 else None,
            guidance=group.scales[step],
            times=self._times,
        )
        self._keep(samples, queries, values)
        return values

    def _noise(self, samples: slice | Tensor, count: int) -> Tensor:
        batch, rng = len(self.tokens), self._rng
        if isinstance(samples, Tensor):
            active = torch.zeros(batch, dtype=torch.bool)
            active[samples] = True
            rng = draws_of(rng, active)
        shape = (self._settings.head_steps, batch, count, self.tokens.shape[2])
        device, dtype = self.tokens.device, self.tokens.dtype
        return draw_normal(shape, rng=rng, device=device, dtype=dtype, batch_dim=1)[:, samples]

    def _keep(self, samples: slice | Tensor, places: Tensor, values: Tensor) -> None:
        embedded = self._model.transformer.embed_tokens(values, places)
        tokens = scatter_tokens(self.tokens[samples], places, values)
        rows = scatter_tokens(self._rows[samples], places, embedded)
        if isinstance(samples, Tensor):
            index = samples.to(tokens.device)
            tokens, rows = self.tokens.index_copy(0, index, tokens), self._rows.index_copy(0, index, rows)
        self.tokens, self._rows = tokens, rows
