"""Trainings that only the study of sequences needs: chunks by a rule, and a vocabulary of words in place of bytes."""

from __future__ import annotations

import dataclasses

from hiergen.data.text.sources import open_documents
from hiergen.evaluation.texts.rules import Rule, follow_rule
from hiergen.evaluation.texts.vocabulary import PieceSet, Vocabulary
from hiergen.registry import create
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.settings import TextTaskConfig
from hiergen.training.tasks.text import TextTask


@dataclasses.dataclass(frozen=True)
class StudyTextTaskConfig(TextTaskConfig):
    """Train a model of text as the study compares them.

    Attributes:
        rule: What cuts the chunks of an `HNet`.
        vocab_size: Size of the vocabulary, made of the training texts; 256 is bytes.
    """

    rule: Rule = "router"
    vocab_size: int = 256

    def build(self) -> Task:
        if self.vocab_size > 256:
            return _PieceTask(self)
        task = TextTask(self)
        if self.rule != "router":
            follow_rule(task.model, self.rule)
        return task


class _PieceTask(TextTask):
    def __init__(self, config: StudyTextTaskConfig) -> None:
        self.players = {"model": create(config.preset, **config.overrides, vocab_size=config.vocab_size)}
        documents = open_documents(config.data)
        vocabulary = Vocabulary.of(documents.texts, config.vocab_size)
        self.dataset = PieceSet(documents, vocabulary, length=config.data.length)
