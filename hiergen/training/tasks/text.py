"""Train a model of sequences on texts: bits per byte, and of a model with chunks their ratio loss and compression by stage."""

from __future__ import annotations

import torch
from torch import Tensor

from hiergen.data.text.dataset import TextSet
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.texts import Texts
from hiergen.registry import create
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.settings import TextTaskConfig

__all__ = ["TextTask", "TextTaskConfig"]


class TextTask(Task):
    """The model's own loss on rows of texts.

    Raises:
        ValueError: If the preset is no model of bytes.
    """

    def __init__(self, config: TextTaskConfig) -> None:
        model = create(config.preset, **config.overrides)
        if not isinstance(model, SequenceModel) or not model.reads_bytes:
            raise ValueError(
                f"preset is {config.preset!r}, a {type(model).__name__}, expected a model of text as bytes, such as "
                "hnet-tiny, block-tiny or byte-word-tiny"
            )
        self.players = {"model": model}
        self.dataset = TextSet.open(config.data, multiple=model.alignment)
        if config.validation is not None:
            self.validation = TextSet.open(config.validation, multiple=model.alignment)

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.model.loss(Texts(batch["ids"], starts=batch.get("starts")), rng=rng)
        return losses
