"""How likely a generator finds pictures that are there, and under which class most: its likelihood as a tool.

Letters: `b` pictures, `k` levels, `c` classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from hiergen.generators.conditioning import Unconditional
from hiergen.pipelines.arguments import Labels, check_count, read_labels
from hiergen.pipelines.base import HiergenPipeline, moved
from hiergen.pipelines.encoding import join
from hiergen.pipelines.labels import number_classes
from hiergen.pyramid import TokenPyramid


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
        labels: Number of the likeliest class of each picture, `(b,)`.
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
    """A pipeline of images with what its generator's likelihood is good for, where it is exact (`Generator.score`)."""

    @torch.no_grad()
    def score(self, images: Any, class_labels: Labels = None, *, batch_size: int = 64) -> Likelihoods:
        """Return how likely the generator finds the tokens of pictures, by level.

        Args:
            images: A picture, several, or a tensor `(b, 3, h, w)` in [-1, 1], as the tokenizer reads them.
            class_labels: The class of each picture, or one for all, by number or by name; None for no class.
            batch_size: Number of pictures per pass.

        Raises:
            ValueError: If an argument is out of range, there are neither one nor as many classes as pictures, or the generator has no exact
                likelihood, or none without a class.
        """
        pyramid = self._encode(images, check_count("batch_size", batch_size))
        count = pyramid.batch_size
        if class_labels is None:
            if not self.generator.makes_unconditional:
                raise ValueError(
                    f"class_labels is None, but the labels of this {type(self.generator).__name__} were never dropped in training: give them"
                )
            return self._likelihoods(pyramid, None, batch_size)
        labels = read_labels(number_classes(class_labels, self.class_names))
        if len(labels) not in (1, count):
            raise ValueError(f"class_labels holds {len(labels)} classes, expected 1 or {count}, one per picture")
        return self._likelihoods(pyramid, labels.expand(count), batch_size)

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
        if class_labels is None:
            labels = torch.arange(self.generator.config["num_classes"] or 0)
            if not len(labels):
                raise ValueError(f"class_labels is None, but this {type(self.generator).__name__} has no classes")
        else:
            labels = read_labels(number_classes(class_labels, self.class_names))
        pyramid = self._encode(images, check_count("batch_size", batch_size))
        count = pyramid.batch_size
        rows = torch.arange(count).repeat_interleave(len(labels))
        found = self._likelihoods(pyramid[rows], labels.repeat(count), batch_size).total.unflatten(0, (count, -1))
        return Classification(labels[found.argmax(dim=1)], labels, found)

    def _encode(self, images: Any, batch_size: int) -> TokenPyramid:
        pictures: Sequence[Any] | Tensor = [images] if isinstance(images, Image.Image) else images
        if not len(pictures):
            raise ValueError("images is empty, expected at least one picture")
        tokenizer, parts = moved(self.tokenizer), []
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            parts.append(tokenizer.encode(part.to(tokenizer.device) if isinstance(part, Tensor) else part).to("cpu"))
        return join(parts)

    def _likelihoods(self, pyramid: TokenPyramid, labels: Int[Tensor, " b"] | None, batch_size: int) -> Likelihoods:
        generator = moved(self.generator)
        found = []
        for start in range(0, pyramid.batch_size, batch_size):
            part = pyramid[start : start + batch_size]
            condition: Any = Unconditional(part.batch_size) if labels is None else labels[start : start + batch_size]
            found.append(torch.stack(generator.score(part, condition), dim=1).cpu())
        self.maybe_free_model_hooks()
        return Likelihoods(torch.cat(found), tuple(spec.num_tokens for spec in pyramid.specs))
