"""What the training loop needs to know of the thing that is trained: players, data, losses.

A player is a model or a discriminator; the loop updates all players once a step, in order. There is one task for every
tokenizer and one for every generator: what differs between families is inside the models.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from hiergen.data.codes import CodeSet
from hiergen.data.images import Dataset
from hiergen.data.sources import DataConfig, open_images
from hiergen.generators.base import Generator
from hiergen.registry import create, get_preset
from hiergen.tokenizers.base import Tokenizer


class Task(abc.ABC):
    """Players, data and losses of a run.

    Attributes:
        players: Modules by name, in the order of their updates; the first is the model that the run is about.
        dataset: The samples.
    """

    players: dict[str, nn.Module]
    dataset: Dataset

    @abc.abstractmethod
    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Return named scalars of one player on one batch: "loss" is minimised, all are logged.

        Called for every player in order; what a later player needs of an earlier one's pass, the task keeps in between.
        """

    @property
    def model(self) -> Any:
        """The model that the run is about."""
        return next(iter(self.players.values()))


@dataclasses.dataclass(frozen=True)
class TaskConfig(abc.ABC):
    """The settings of a task; a subclass a task. JSON values only, because it is saved with the run."""

    @abc.abstractmethod
    def build(self) -> Task:
        """Return the task, with models of random weights."""


@dataclasses.dataclass(frozen=True)
class TokenizerTaskConfig(TaskConfig):
    """Train a tokenizer to reconstruct images.

    Attributes:
        preset: Name of a tokenizer preset.
        overrides: Entries of the preset's config to replace.
        data: The images.
        pixel_loss: Mean squared ("mse") or absolute ("l1") error in [0, 1] space.
        pixel_weight: Its weight.
    """

    preset: str = "restok-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    pixel_loss: Literal["mse", "l1"] = "mse"
    pixel_weight: float = 1.0

    def build(self) -> TokenizerTask:
        return TokenizerTask(self)


class TokenizerTask(Task):
    """Reconstruction: pixel loss plus whatever losses the bottleneck adds."""

    def __init__(self, config: TokenizerTaskConfig) -> None:
        self._config = config
        self.tokenizer = cast(Tokenizer, create(config.preset, **config.overrides))
        self.players = {"tokenizer": self.tokenizer}
        self.dataset = open_images(config.data)

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        image = batch["image"]
        output = self.tokenizer(image, rng=rng)
        # Halved, because the published weights of the terms are for images in [0, 1].
        difference = (output.reconstruction.float() - image) / 2
        pixel = difference.square().mean() if self._config.pixel_loss == "mse" else difference.abs().mean()
        total = self._config.pixel_weight * pixel + sum(output.losses.values())
        return {"loss": total, "pixel": pixel.detach(), **{k: v.detach() for k, v in output.losses.items()}}


@dataclasses.dataclass(frozen=True)
class GeneratorTaskConfig(TaskConfig):
    """Train a generator on a cache of token pyramids.

    Attributes:
        preset: Name of a generator preset.
        overrides: Entries of the preset's config to replace. The tokenizer's level specs, the number of classes and, for a preset
            that does not say how to scale continuous tokens, their mean and deviation come from the cache and need not be given.
        codes: Folder that `hiergen encode` wrote.
    """

    preset: str = "har-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    codes: str = "codes"

    def build(self) -> GeneratorTask:
        return GeneratorTask(self)


class GeneratorTask(Task):
    """The generator's own loss on cached pyramids with class labels."""

    def __init__(self, config: GeneratorTaskConfig) -> None:
        self.dataset = codes = CodeSet.open(config.codes)
        derived = {
            "level_specs": codes.level_specs,
            "num_classes": len(codes.classes),
            **_standardization(config.preset, codes),
        }
        self.generator = cast(Generator, create(config.preset, **{**derived, **config.overrides}))
        self.generator.check_tokenizer(codes.specs)
        self.players = {"generator": self.generator}

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        codes = cast(CodeSet, self.dataset)
        return self.generator.loss(codes.pyramid(batch), batch["label"], rng=rng)


#: The generators that standardize tokens by one mean and deviation a channel.
_STANDARDIZING = ("FlowTransformer", "MaskedAR")


def _standardization(preset: str, codes: CodeSet) -> dict[str, list[float]]:
    """Return the config entries that standardize the tokens of a cache, none where the preset scales them in its own way."""
    chosen = get_preset(preset)
    says_how = any(name.startswith("latent_") for name in chosen.config)
    if chosen.model not in _STANDARDIZING or says_how or any(spec.is_discrete for spec in codes.specs):
        return {}
    statistics = codes.statistics()
    return {"latent_mean": list(statistics.mean), "latent_std": list(statistics.std)}
