"""What every generator is: a condition -> levels of tokens."""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from hiergen.config import nearest
from hiergen.generators.lora import LoraModel
from hiergen.known import Known
from hiergen.nn.running.modes import evaluating
from hiergen.nn.running.precision import widen
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.seeding import Rng

#: Called after each generation step with the index of the step, the levels that are complete so far (None before the first), the
#: keyword `latents`, the state of the generation as one sequence, and where time is continuous `time`. What it returns, if not None,
#: is what the generation goes on from: the complete levels, or the whole state. Tokens that were not made yet are 0 in the state.
StepCallback = Callable[..., TokenPyramid | Tensor | None]


class Generator(ModelMixin, ConfigMixin, LoraModel):  # type: ignore[misc]  # both bases define config_name
    """A diffusers model that produces the levels of one tokenizer.

    Subclasses register a keyword-only config of JSON values in `__init__`, among them the tokenizer's level specs
    (`specs_to_json`), and implement `specs`, `loss` and `generate`. A generator never calls a tokenizer.

    A trained one's config also has `id2label`, the name of each class by its number, where the data have names.
    """

    #: The dataclass of `generate`'s settings.
    settings_class: ClassVar[type[Any]]

    #: Parts of the model that are copies of the tokenizer's, by the first part of their dotted names; no start from other weights changes them.
    tokenizer_parts: ClassVar[tuple[str, ...]] = ()

    #: What `generate` may be given: "levels", whole first levels; "places", tokens inside a level. Empty where it refuses `known`.
    takes_known: ClassVar[frozenset[str]] = frozenset()

    @property
    def makes_unconditional(self) -> bool:
        """Whether `generate` takes an `Unconditional`: the model knows a label for "no class", and was trained with it."""
        return False

    @property
    @abc.abstractmethod
    def specs(self) -> tuple[LevelSpec, ...]:
        """The levels that this generator produces, coarse to fine: those of the tokenizer it was trained for."""

    @abc.abstractmethod
    def loss(
        self, pyramid: TokenPyramid, condition: Tensor, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return named scalars: "loss" is what to minimize, the others are for the log."""

    @abc.abstractmethod
    def generate(
        self,
        condition: Any,
        settings: Any = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid per row of `condition`.

        What is `known` is in the result bit for bit, and what is not depends on it. Where nothing is given, the result is that of a call
        without it; a step, or a level, all of whose tokens are given in a sample draws nothing for this sample. If everything is given,
        it is returned at once, without steps.

        Args:
            condition: Class labels `(b,)`, or whatever else the generator is conditioned on (`hiergen.generators.conditioning`);
                `Unconditional` where `makes_unconditional`.
            settings: An instance of `settings_class`; None takes its defaults.
            known: Levels, and tokens inside of levels, that are given (`takes_known`).
            rng: Source of all draws; a `SampleRng` makes each sample's draws independent of what else is in the batch.
            callback: Called after each step, see `StepCallback`.
        """

    @torch.no_grad()
    def score(self, pyramid: TokenPyramid, condition: Any) -> list[Float[Tensor, " b"]]:
        """Return the log-likelihood of each level given the coarser ones and the condition, in nats: one tensor `(b,)` per level.

        Their sum is that of the whole pyramid. Temperature, truncation and guidance have no part in it.

        Args:
            pyramid: All levels, of ids.
            condition: What `generate` takes, one per sample.

        Raises:
            ValueError: If this generator has no exact likelihood, or pyramid and condition do not fit.
        """
        self.check_pyramid(pyramid)
        ids = pyramid.to(self.device).concat()
        with evaluating(self):
            logits = widen(self.id_logits(ids, condition))
        nats = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
        return [-part.sum(dim=1) for part in nats.split([spec.num_tokens for spec in self.specs], dim=1)]

    def id_logits(self, ids: Tensor, condition: Any) -> Tensor:
        """Return the logits `(b, n, v)` of the ids of all levels, `(b, n)`, given those before and what `generate` takes as a condition.

        Generators whose likelihood is the product of these probabilities override it.

        Raises:
            ValueError: If this generator is none of them.
        """
        raise ValueError(
            f"{type(self).__name__} has no exact likelihood, expected a generator of ids, made one by one or level by level"
        )

    def count_steps(self, settings: Any) -> int:
        """Return how many steps `generate` takes, for a progress bar; 0 where it is not known before."""
        return 0

    def tokens_of(self, latents: Tensor) -> TokenPyramid:
        """Return the state of a generation, as a `StepCallback` is shown it, as levels in the tokenizer's own units."""
        return TokenPyramid.split(latents, self.specs)

    def compile_sampling(self, **options: Any) -> Any:
        """Compile what `generate` repeats, in place; return the model. The state dict keeps its names.

        Args:
            options: Arguments of `torch.compile`.
        """
        self.compile_repeated_blocks(**options)
        return self

    @classmethod
    def make_settings(cls, **values: Any) -> Any:
        """Return the settings of `generate` with some fields set.

        Raises:
            TypeError: If a field is unknown, with the nearest name.
        """
        known = [field.name for field in dataclasses.fields(cls.settings_class)]
        for name in values:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no setting {name!r}{nearest(name, known)}")
        return cls.settings_class(**values)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return what diffusers does of a saved config: the names of the classes are kept, though no argument of the constructor."""
        given = {name: value for name, value in config_dict.items() if name != "id2label"}
        arguments, unused, kept = super().extract_init_dict(given, **kwargs)
        names = {"id2label": config_dict["id2label"]} if "id2label" in config_dict else {}
        return arguments, unused, {**kept, **names}

    def check_tokenizer(self, specs: tuple[LevelSpec, ...]) -> None:
        """Check that a tokenizer's levels are those that this generator was trained for.

        Raises:
            ValueError: If they differ.
        """
        self._check_levels("the tokenizer", specs)

    def check_pyramid(self, pyramid: TokenPyramid) -> None:
        """Check that a pyramid holds all levels that this generator was trained for, and no others.

        Raises:
            ValueError: If they differ.
        """
        self._check_levels("the pyramid", pyramid.specs)

    def check_known(self, known: Known | None, batch: int, num_levels: int | None = None) -> Known | None:
        """Return what `generate` is given, on the generator's device; None where no token is.

        Args:
            known: What the caller gave.
            batch: Number of samples.
            num_levels: Number of levels that are made; None is all.

        Raises:
            ValueError: If it is of another tokenizer, batch or kind than this generator takes, or holds more levels than are made, ids
                that no token has, or NaN.
        """
        if known is None:
            return None
        name, asked = type(self).__name__, "levels" if all(mask is None for mask in known.masks) else "places"
        if asked not in self.takes_known:
            takes = " or ".join(sorted(self.takes_known)) or "nothing that is given: leave it out"
            raise ValueError(f"known gives {asked}, but {name} takes {takes}")
        specs = self.specs[:num_levels]
        if known.pyramid.specs != specs[: len(known.pyramid)]:
            raise ValueError(
                f"known gives the levels {known.pyramid.specs}, expected the first of {specs}, which are made"
            )
        if len(known) != batch:
            raise ValueError(f"known holds {len(known)} samples, expected {batch}, one per row of the condition")
        return None if known.is_empty else known.check_tokens().to(self.device)

    def _complete_levels(self, ids: Tensor, num_tokens: int) -> TokenPyramid | None:
        """Return the levels that the first `num_tokens` ids of a sequence complete; None if there are none."""
        ends = [end for end in itertools.accumulate(spec.num_tokens for spec in self.specs) if end <= num_tokens]
        return TokenPyramid.split(ids[:, : ends[-1]], self.specs) if ends else None

    def _check_levels(self, owner: str, specs: tuple[LevelSpec, ...]) -> None:
        if tuple(specs) != self.specs:
            raise ValueError(f"{owner}'s levels are {tuple(specs)}, this generator was trained for {self.specs}")
