"""Tokens for an evaluation: item i is a function of (seed, i) and its label alone.

Neither the batch size nor the number of processes changes what is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiergen.evaluation.settings import GeneratorSettings, LabelRule, SamplingConfig
from hiergen.generators.base import Generator
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pipelines.labels import class_names
from hiergen.pipelines.loading import from_pretrained
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import SampleRng, make_rng
from hiergen.tokenizers.base import Tokenizer


class TokenSource:
    """Draws tokens of a pipeline's generator by their indices.

    Args:
        path: Folder or Hub id of a pipeline of a generator and a tokenizer.
        labels: Rule of the class labels, a key of `LABEL_RULES`.
        sampling: Settings of the generator.
        seed: Seed of labels and draws.
        device: Device to draw on.

    Attributes:
        tokenizer: Tokenizer of the pipeline, in eval mode on the device.
        kind: Class name of the pipeline.
        names: Names of the classes that have one, by number.
        identity: JSON values that everything drawn depends on.

    Raises:
        ValueError: If the pipeline has no generator that takes class labels, or no tokenizer.
        TypeError: If the generator knows no such setting.
    """

    def __init__(
        self, path: str, *, labels: LabelRule, sampling: SamplingConfig, seed: int, device: torch.device
    ) -> None:
        pipeline = from_pretrained(path)
        self.kind = type(pipeline).__name__
        if not hasattr(pipeline, "generator") or not hasattr(pipeline, "tokenizer"):
            raise ValueError(f"{path!r} holds a {self.kind}, expected a pipeline of a generator and a tokenizer")
        self._generator: Generator = pipeline.to(device).generator.eval()
        if not self._generator.config.get("num_classes") or hasattr(pipeline, "image_encoder"):
            raise ValueError(f"{path!r} holds a {self.kind}, expected one that generates from class labels")
        self.tokenizer: Tokenizer = pipeline.tokenizer.eval()
        self.names = class_names(self._generator)
        self._settings = self._generator.make_settings(**sampling.given())
        self._labels, self._seed, self._device = labels, seed, device
        self._num_classes: int = self._generator.config["num_classes"]
        self.identity = {
            "generator": tokenizer_fingerprint(self._generator),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "labels": labels,
            "seed": seed,
            "sampling": sampling.given(),
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of each class of the generator; empty where it knows none."""
        return tuple(self.names.get(number, "") for number in range(self._num_classes)) if self.names else ()

    def labels(self, keys: range) -> Tensor:
        """Return the class that is asked for in some items, `(b,)` int64, on the CPU."""
        return class_labels(keys, self._num_classes, self._labels, self._seed)

    @torch.no_grad()
    def draw(self, keys: range) -> TokenPyramid:
        """Return the tokens of some items, on the device."""
        labels = self.labels(keys).to(self._device)
        return self._generator.generate(labels, self._settings, rng=SampleRng.of(keys, self._seed, "evaluate"))


def open_tokens(settings: GeneratorSettings, kind: str, device: torch.device) -> TokenSource:
    """Return what draws the tokens of items for an evaluation.

    Args:
        settings: Which pipeline, labels and seed.
        kind: Class name that the pipeline must have.
        device: Device to draw on.

    Raises:
        ValueError: If the pipeline is another one, or the generator has no such setting.
    """
    tokens = TokenSource(
        settings.pipeline, labels=settings.labels, sampling=settings.sampling, seed=settings.seed, device=device
    )
    if tokens.kind != kind:
        raise ValueError(f"{settings.pipeline!r} holds a {tokens.kind}, expected a {kind}")
    return tokens


def class_labels(keys: range, num_classes: int, rule: str, seed: int) -> Tensor:
    """Return the labels of some items by their indices, `(b,)` int64; see `LABEL_RULES`."""
    if rule == "balanced":
        return torch.tensor([key % num_classes for key in keys])
    return torch.cat([torch.randint(num_classes, (1,), generator=make_rng(seed, "label", key)) for key in keys])
