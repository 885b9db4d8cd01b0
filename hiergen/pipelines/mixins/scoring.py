"""How likely a generator finds pictures that are there, and under which class or text most: its likelihood as a tool.

Letters: `b` pictures, `k` levels, `c` classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hiergen.generators.base import Generator
from hiergen.generators.conditioning import TextCondition, Unconditional
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.flow.velocity_errors import velocity_errors
from hiergen.pipelines.arguments import Labels, check_count, read_labels
from hiergen.pipelines.base import HiergenPipeline, moved
from hiergen.pipelines.encoding import join
from hiergen.pipelines.labels import number_classes
from hiergen.pyramid import TokenPyramid

#: Times of a flow's path at which candidates are compared: later ones tell details, not what a picture shows (docs/results/words.md).
COMPARED_AT = (0.2, 0.4, 0.6)


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihoods:
    """How likely a generator finds some pictures, on the CPU.

    Attributes:
        levels: Log-likelihood of each level given the coarser ones and the condition, in nats, `(b, k)`.
        num_tokens: Number of tokens of each level.
    """

    levels: Tensor
    num_tokens: tuple[int, ...]

    @property
    def total(self) -> Float[Tensor, " b"]:
        """The log-likelihood of each picture's tokens, in nats."""
        return self.levels.sum(dim=1)

    @property
    def nats_per_token(self) -> Float[Tensor, " b"]:
        """The mean surprise of a token, in nats: smaller for likelier pictures."""
        return -self.total / sum(self.num_tokens)

    def novelty(self, held_out: Likelihoods) -> Float[Tensor, " b"]:
        """Return how much more surprising a token is than in pictures that were held out of training, in nats.

        Above 0 is rarer than data; far below 0 is likelier than data the generator did not see, so common or remembered.
        """
        return self.nats_per_token - held_out.nats_per_token.mean()


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """The class under which a generator finds each picture most likely, on the CPU.

    Attributes:
        labels: Number of the likeliest class of each picture, `(b,)`; of texts the place in their list.
        class_labels: Numbers of the classes that were compared, `(c,)`.
        log_likelihoods: Log-likelihood of each picture under each of them, in nats, `(b, c)`.
    """

    labels: Tensor
    class_labels: Tensor
    log_likelihoods: Tensor

    @property
    def probabilities(self) -> Float[Tensor, "b c"]:
        """The probability of each class, if all were equally frequent."""
        return self.log_likelihoods.softmax(dim=1)


class ScoringPipeline(HiergenPipeline):
    """A pipeline of images with what its generator's likelihood is good for, where it is exact (`Generator.score`), and a flow's errors."""

    #: The argument that says what is to be made.
    told_by: ClassVar[str] = "class_labels"

    @torch.no_grad()
    def score(self, images: Any, class_labels: Labels = None, *, batch_size: int = 64) -> Likelihoods:
        """Return how likely the generator finds the tokens of pictures, by level.

        Args:
            images: A picture, several, or a tensor `(b, 3, h, w)` in [-1, 1], as the tokenizer reads them; or their tokens, a `TokenPyramid`.
            class_labels: The class of each picture, or one for all, by number or by name; None for no class.
            batch_size: Number of pictures per pass.

        Raises:
            ValueError: If an argument is out of range, there are neither one nor as many classes as pictures, or the generator has no exact
                likelihood, or none without a class.
        """
        pyramid = self._encode(images, check_count("batch_size", batch_size))
        found = self._per_batch(self._score, pyramid, self._one_each(class_labels, pyramid.batch_size), batch_size)
        return Likelihoods(found, tuple(spec.num_tokens for spec in pyramid.specs))

    @torch.no_grad()
    def classify(self, images: Any, class_labels: Labels = None, *, batch_size: int = 64) -> Classification:
        """Return the class under which each picture is most likely: classification without a classifier.

        Pictures are encoded once; the generator then reads each with every class.

        Args:
            images: As for `score`.
            class_labels: The classes to choose from, by number or by name; None is all.
            batch_size: Number of pictures with a class per pass.

        Raises:
            ValueError: As for `score`.
        """
        numbers, told = self._candidates(class_labels)
        pyramid = self._encode(images, check_count("batch_size", batch_size))
        count = pyramid.batch_size
        rows = torch.arange(count).repeat_interleave(len(numbers))
        each = told[torch.arange(len(numbers)).repeat(count)]
        found = self._per_batch(self._score, pyramid[rows], each, batch_size).sum(dim=1).unflatten(0, (count, -1))
        return Classification(numbers[found.argmax(dim=1)], numbers, found)

    @torch.no_grad()
    def velocity_errors(
        self,
        images: Any,
        class_labels: Any = None,
        *,
        times: Sequence[float] = (0.3, 0.55, 0.8),
        seed: int = 0,
        batch_size: int = 64,
    ) -> Float[Tensor, " b"]:
        """Return how far a flow's velocity is from the right one for each picture, a mean over some times of its path.

        It is no likelihood, and in no unit of one: of one picture, it can be compared between conditions, and with that of no condition
        (None). What a condition gains over none can be compared between pictures. All pictures have the same noise, from the seed.

        Args:
            images: As for `score`.
            class_labels: The class of each picture, or one for all; of a pipeline of texts these. None for no condition.
            times: Times of the path, 0 (noise) to 1.
            seed: Seed of the noise.
            batch_size: Number of pictures per pass.

        Raises:
            ValueError: If an argument is out of range, there are neither one nor as many conditions as pictures, or the generator is no flow.
        """
        if not isinstance(self.generator, FlowTransformer):
            raise ValueError(f"this pipeline has a {type(self.generator).__name__}, expected a flow: use score()")
        pyramid = self._encode(images, check_count("batch_size", batch_size))

        def measure(part: TokenPyramid, condition: Any) -> Tensor:
            return velocity_errors(cast(FlowTransformer, self.generator), part, condition, times=times, seed=seed)

        each = self._one_each(class_labels, pyramid.batch_size)
        return self._per_batch(measure, pyramid, each, batch_size).mean(dim=1)

    @property
    def compares_candidates(self) -> bool:
        """Whether images can be asked for with `best_of`: a flow or a generator of exact likelihood, whose condition was dropped in training."""
        return not self._obstacle()

    def _obstacle(self) -> str:
        """Return why it is not known what candidates gain by their condition; "" where it is."""
        kind = type(self.generator)
        if not self.generator.makes_unconditional:
            return (
                f"what this {kind.__name__} is told was never dropped in training, "
                "so what a candidate gains by it is not known"
            )
        if not isinstance(self.generator, FlowTransformer) and kind.id_logits is Generator.id_logits:
            return f"a {kind.__name__} has no exact likelihood to compare by"
        return ""

    def _check_gains(self, best_of: int, told: Any) -> None:
        """Check that candidates can be compared by what they gain by their condition.

        Raises:
            ValueError: If there is no condition, it was never dropped in training, or the generator is no flow and has no exact likelihood.
        """
        if isinstance(told, Unconditional):
            what = self.told_by
            raise ValueError(f"best_of is {best_of} without {what}, by which candidates are compared: expected 1")
        if obstacle := self._obstacle():
            raise ValueError(f"best_of is {best_of}, but {obstacle}: expected 1")

    def _gains(self, pyramid: TokenPyramid, told: Tensor | TextCondition) -> Float[Tensor, " b"]:
        """Return what tokens gain by their condition: log-likelihood over that without one, or of a flow the error that it saves."""
        if isinstance(told, TextCondition):
            told = TextCondition(told.features, told.mask)
        if isinstance(self.generator, FlowTransformer):
            with_it, without = (self.velocity_errors(pyramid, c, times=COMPARED_AT) for c in (told, None))
            return without - with_it
        return self.score(pyramid, told).total - self.score(pyramid).total

    def _encode(self, images: Any, batch_size: int) -> TokenPyramid:
        if isinstance(images, TokenPyramid):
            return images.to("cpu")
        pictures: Sequence[Any] | Tensor = [images] if isinstance(images, Image.Image) else images
        if not len(pictures):
            raise ValueError("images is empty, expected at least one picture")
        tokenizer, parts = moved(self.tokenizer), []
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            parts.append(tokenizer.encode(part.to(tokenizer.device) if isinstance(part, Tensor) else part).to("cpu"))
        return join(parts)

    def _read_told(self, told: Any) -> Tensor | TextCondition:
        """Return what a caller said of the pictures, as the generator reads it."""
        return read_labels(number_classes(told, self.class_names))

    def _candidates(self, told: Any) -> tuple[Int[Tensor, " c"], Tensor | TextCondition]:
        """Return the numbers of what is chosen from, and it itself."""
        if told is None:
            count = self.generator.config["num_classes"] or 0
            if not count:
                raise ValueError(
                    f"{self.told_by} is None, but this {type(self.generator).__name__} has no classes: give what to choose from"
                )
            told = torch.arange(count)
        read = self._read_told(told)
        return torch.arange(len(read)) if isinstance(read, TextCondition) else read, read

    def _one_each(self, told: Any, count: int) -> Tensor | TextCondition | None:
        """Return one condition per picture; None for none."""
        if told is None:
            if not self.generator.makes_unconditional:
                raise ValueError(
                    f"{self.told_by} is None, but what this {type(self.generator).__name__} is told was never dropped in training: give it"
                )
            return None
        read = self._read_told(told)
        if len(read) not in (1, count):
            raise ValueError(f"{self.told_by} holds {len(read)}, expected 1 or {count}, one per picture")
        return read[torch.zeros(count, dtype=torch.int64)] if len(read) == 1 else read

    def _score(self, pyramid: TokenPyramid, condition: Any) -> Tensor:
        return torch.stack(self.generator.score(pyramid, condition), dim=1)

    def _per_batch(
        self,
        measure: Callable[[TokenPyramid, Any], Float[Tensor, "b k"]],
        pyramid: TokenPyramid,
        told: Tensor | TextCondition | None,
        batch_size: int,
    ) -> Float[Tensor, "n k"]:
        """Return what is measured of tokens under their conditions, in passes of a batch."""
        moved(self.generator)
        found = []
        for start in range(0, pyramid.batch_size, batch_size):
            part = pyramid[start : start + batch_size]
            condition: Any = Unconditional(part.batch_size) if told is None else told[start : start + batch_size]
            found.append(measure(part, condition).cpu())
        self.maybe_free_model_hooks()
        return torch.cat(found)
