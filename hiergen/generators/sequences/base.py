"""What every model of sequences is: ids -> logits of the next id, with a cache; of texts, or of a tokenizer's levels by class.

The same class does two things. A model of text has neither levels nor classes; it reads `Texts` and continues prompts. A class-conditional
one is a `Generator` over the levels of a discrete tokenizer: the sequence is all levels, coarse to fine, and the class is one embedding in
front of it, at position 0. A position of the input predicts the id behind it, so that with a class the first id is predicted too:

    rows = [class], x_0, x_1, ... x_n-1          logits of     [x_0], x_1, x_2, ... x_n

Letters: `b` batch, `n` ids of the input, `r` rows of logits (n, with a class n + 1), `v` vocabulary.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    Unconditional,
    check_condition,
    class_table,
    drop_labels,
    resolve_labels,
    with_unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.sampling import draw_ids, draw_missing
from hiergen.generators.sequences.prediction import NextLogits, Prediction
from hiergen.generators.sequences.settings import SequenceSettings, TextSettings
from hiergen.generators.sequences.texts import NUM_BYTES, StopWatch, Text, Texts, check_rows
from hiergen.known import Known
from hiergen.levels import shared_vocabulary
from hiergen.nn.depth.stack import generating
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.running.precision import widen
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng


class SequenceModel(Generator, CheckpointedModule):  # type: ignore[misc]  # see Generator
    """A causal model of sequences of ids, with a cache.

    Subclasses register a config with the arguments of `_read_task`, call that first in `__init__`, and implement `predict`, `start_cache`,
    `prefill` and `step`. `class_embedding` is theirs to make, by `_make_class_embedding`, and to read in front of the sequence.
    """

    settings_class = SequenceSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True

    _specs: tuple[LevelSpec, ...]
    class_embedding: nn.Embedding | ClassPathEmbedding | None

    def _read_task(
        self,
        level_specs: Sequence[dict[str, Any]] | None,
        num_classes: int | None,
        vocab_size: int,
        class_dropout: float,
    ) -> int:
        """Note what the sequences are; return their vocabulary.

        Args:
            level_specs: The tokenizer's levels as JSON, all discrete, of one vocabulary, which replaces `vocab_size`; None for text.
            num_classes: Number of classes; None for text.
            vocab_size: Number of ids of text; 256 for bytes.
            class_dropout: Probability that `loss` replaces a label by "no class".

        Raises:
            ValueError: If there are levels without classes, or classes without levels, or a number is out of range.
        """
        if (level_specs is None) != (num_classes is None):
            raise ValueError(
                f"level_specs is {level_specs} and num_classes is {num_classes}, expected both, or for text neither"
            )
        if not 0 <= class_dropout <= 1:
            raise ValueError(f"class_dropout is {class_dropout}, expected 0 to 1")
        if vocab_size < 2:
            raise ValueError(f"vocab_size is {vocab_size}, expected at least 2")
        self._specs = () if level_specs is None else specs_from_json(level_specs)
        return shared_vocabulary(self._specs) if self._specs else vocab_size

    def _make_class_embedding(
        self, num_classes: int | None, dim: int, hierarchy: Any = None
    ) -> nn.Embedding | ClassPathEmbedding | None:
        """Return the embedding of the classes, `dim` channels, with a last row for no class; None for text."""
        return None if num_classes is None else class_table(num_classes, dim, hierarchy)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        """The levels that this generator produces; none if it is a model of text."""
        return self._specs

    @property
    def is_text(self) -> bool:
        """Whether this is a model of text, without levels and classes."""
        return not self._specs

    @property
    def reads_bytes(self) -> bool:
        """Whether this is a model of text whose ids are bytes."""
        return self.is_text and bool(self.config["vocab_size"] == NUM_BYTES)

    @property
    def alignment(self) -> int:
        """Packed texts must begin at multiples of so many ids."""
        return 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all levels; 0 for text."""
        return sum(spec.num_tokens for spec in self._specs)

    @property
    def makes_unconditional(self) -> bool:
        return not self.is_text and bool(self.config["class_dropout"] > 0)

    def rate_multipliers(self) -> dict[str, float]:
        """Return factors of the learning rate by the first part of parameters' names; parameters without one keep the rate."""
        return {}

    @abc.abstractmethod
    def predict(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
    ) -> Prediction:
        """Return the logits of the id behind each position, and what else is to be minimized or logged; arguments as in `forward`."""

    @abc.abstractmethod
    def start_cache(self, batch: int, num_ids: int) -> Any:
        """Return an empty cache.

        Args:
            batch: Number of sequences.
            num_ids: Number of ids of each that it must hold; the class is not counted.
        """

    @abc.abstractmethod
    def prefill(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None,
        cache: Any,
        condition: Tensor | None = None,
    ) -> Float[Tensor, "b v"]:
        """Read the beginning of every sequence into an empty cache; return the logits of the id behind it, without gradients.

        Args:
            ids: The beginnings, with padding behind; with a class there may be no id, n = 0.
            lengths: Number of ids of each; None is all.
            cache: What `start_cache` returned; changed in place.
            condition: Class labels, as in `forward`.
        """

    @abc.abstractmethod
    def step(self, ids: Int[Tensor, " b"], cache: Any) -> Float[Tensor, "b v"]:
        """Read one more id of every sequence; return the logits of the id behind it, without gradients."""

    def forward(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b r v"]:
        """Return the logits of the id behind each position.

        Args:
            ids: Ids, int64, with padding behind.
            lengths: Number of ids of each row that are no padding, int64; None is all. Logits at padding mean nothing.
            condition: Class labels `(b,)`, int64, `num_classes` stands for no class; None for text. With it there is one row more, the
                first, which predicts the first id.
            starts: True where a text of a packed row begins; no text sees another.

        Raises:
            ValueError: If shapes do not fit, or a condition is missing or not understood.
        """
        return self.predict(ids, lengths, condition, starts=starts).logits

    def loss(  # type: ignore[override]  # texts are the sibling of a pyramid
        self, batch: TokenPyramid | Texts, condition: Tensor | None = None, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy per id in nats plus what else the model minimizes, as "loss", and scalars for the log.

        Args:
            batch: Texts; or all levels of a tokenizer, for a class-conditional model.
            condition: Class labels `(b,)`, int64; None for texts.
            rng: Source of the draw of which labels are dropped, in train mode.

        Returns:
            "loss", "accuracy", "bits_per_byte" (of texts as bytes, otherwise "bits_per_token"), and what the model adds.

        Raises:
            ValueError: If the model is of another kind than the batch, or the pyramid is of another tokenizer.
        """
        if isinstance(batch, TokenPyramid):
            self.check_pyramid(batch)
            batch = Texts(batch.concat())
        elif not self.is_text:
            raise ValueError(f"the batch holds texts, expected a pyramid of the levels {self._specs}")
        if self.training and condition is not None:
            table, rate = self.class_embedding, self.config["class_dropout"]
            condition = drop_labels(condition, self.config["num_classes"], rate, table, rng=rng)
        # The last id predicts nothing.
        ids, starts = batch.ids[:, :-1], None if batch.starts is None else batch.starts[:, :-1]
        lengths = None if batch.lengths is None else batch.lengths.clamp(max=ids.shape[1])
        found = self.predict(ids, lengths, condition, starts=starts)
        first = 0 if condition is not None else 1
        target, scored = batch.ids[:, first:], batch.is_scored[:, first:].clone()
        scored[:, : found.unscored] = False
        return self._score(found, target, scored)

    def _score(self, found: Prediction, target: Tensor, scored: Tensor) -> dict[str, Tensor]:
        nats = F.cross_entropy(widen(found.logits).flatten(0, 1), target.flatten(), reduction="none")
        weight = scored.flatten().to(nats.dtype)
        count = weight.sum().clamp(min=1)
        entropy = (nats * weight).sum() / count
        hits = (found.logits.detach().argmax(dim=-1) == target).flatten()
        unit = "byte" if self.reads_bytes else "token"
        return {
            "loss": entropy + sum(found.losses.values()),
            f"bits_per_{unit}": entropy.detach() / math.log(2),
            "accuracy": (hits * weight).sum() / count,
            **{name: value.detach() for name, value in (found.losses | found.log).items()},
        }

    def check_inputs(
        self, ids: Tensor, lengths: Tensor | None, condition: Tensor | None, starts: Tensor | None = None
    ) -> None:
        """Check what `predict` or `prefill` are given.

        Raises:
            ValueError: If shapes do not fit, or a condition is missing or not understood.
        """
        check_rows(ids, lengths, starts)
        if self.class_embedding is None and condition is not None:
            raise ValueError("condition was given, but this is a model of text without classes: leave it out")
        if self.class_embedding is not None:
            if condition is None:
                raise ValueError("condition is None, expected class labels (b,)")
            check_condition(condition, len(ids), self.class_embedding)
        elif ids.shape[1] == 0:
            raise ValueError("ids holds no id, expected at least one: there is no class in front of a text")

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | Unconditional,
        settings: SequenceSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid of ids per label, generated token by token with dropout off.

        Args:
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`; or `Unconditional`, where labels were dropped in training.
            settings: Guidance and drawing; None samples without guidance from all of the distribution.
            known: Ids that are given, of a prefix or of any places. Only later ids see them. A step whose id is given is read and not drawn.
            rng: Source of the tokens, all samples of a step in one call; a `SampleRng` draws each sample by itself.
            callback: Called after each token, with the levels that are complete by then and as `latents` all ids `(b, n)`.

        Raises:
            ValueError: If a label is out of range, or this is a model of text.
            FloatingPointError: If the logits of a step hold NaN or infinity.
        """
        if self.is_text:
            raise ValueError("this is a model of text without classes: use generate_text")
        settings = SequenceSettings() if settings is None else settings
        num_classes, table = self.config["num_classes"], cast(nn.Module, self.class_embedding)
        labels = resolve_labels(condition, num_classes, self.config["class_dropout"], self.device, table)
        batch, copies, count = len(labels), 2 if settings.is_guided else 1, self.num_tokens
        if settings.is_guided:
            labels = with_unguided_labels(labels, num_classes, settings.guidance_against, table)
        ids, given = labels.new_zeros(batch, count), None
        known = self.check_known(known, batch)
        if known is not None:
            if known.is_complete(len(self._specs)):
                return known.pyramid
            ids, given = known.sequence(self._specs)
        finite = FiniteSteps(type(self).__name__, "logits")
        with generating(self):
            source = NextLogits(self, labels.new_zeros(len(labels), 0), None, labels, count, settings.use_cache)
            for index in range(count):
                logits = source.logits
                finite.note(logits, f"step {index} of {count}")
                if settings.is_guided:
                    conditional, null = logits.chunk(2)
                    logits = settings.guide(conditional, null, index, count)
                own = slice(index, index + 1)
                held = None if given is None else given[:, own]
                ids[:, own] = draw_missing(logits[:, None], ids[:, own], held, settings, rng=rng)
                if callback is not None:
                    callback(index, self._complete_levels(ids, index + 1), latents=ids)
                if index + 1 < count:
                    source.push(ids[:, index].repeat(copies))
        finite.check()
        return TokenPyramid.split(ids, self._specs)

    def id_logits(self, ids: Int[Tensor, "b n"], condition: Any) -> Float[Tensor, "b r v"]:
        num_classes, dropout = self.config["num_classes"], self.config["class_dropout"]
        table = cast(nn.Module, self.class_embedding)
        return self(ids[:, :-1], None, resolve_labels(condition, num_classes, dropout, self.device, table))

    def count_steps(self, settings: Any) -> int:
        return self.num_tokens

    @torch.no_grad()
    def continue_ids(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        settings: TextSettings | None = None,
        *,
        rng: Rng | None = None,
    ) -> Iterator[Int[Tensor, " b"]]:
        """Yield the next id of every text, `settings.max_new_bytes` times; stop sooner by leaving the loop.

        Args:
            ids: The texts so far, with padding behind.
            lengths: Number of ids of each; None is all.
            settings: Drawing; strings that end a text are not looked at.
            rng: Source of the ids; a `SampleRng` draws for each text by itself.

        Raises:
            ValueError: If this is no model of text.
            FloatingPointError: If logits hold NaN or infinity.
        """
        if not self.is_text:
            raise ValueError(f"this is a generator of the levels {self._specs}, no model of text: use generate")
        settings = TextSettings() if settings is None else settings
        with generating(self):
            source = NextLogits(self, ids, lengths, None, settings.max_new_bytes, settings.use_cache)
            for index in range(settings.max_new_bytes):
                finite = FiniteSteps(type(self).__name__, "logits")
                finite.note(source.logits, f"step {index} of {settings.max_new_bytes}")
                finite.check()
                drawn = draw_ids(source.logits, settings, rng=rng)
                yield drawn
                if index + 1 < settings.max_new_bytes:
                    source.push(drawn)

    def stream_text(
        self, prompts: Text | Sequence[Text], settings: TextSettings | None = None, *, rng: Rng | None = None
    ) -> Iterator[list[bytes]]:
        """Yield the new bytes of every text, as they become certain: bytes that may begin a stop string are held back.

        Args:
            prompts: A beginning, or several; "" for none.
            settings: Drawing, the most bytes, what ends a text; None takes the defaults.
            rng: Source of the bytes; a `SampleRng` draws for each text by itself.

        Raises:
            ValueError: If this is no model of bytes, or there is no prompt.
            TypeError: If a prompt is neither str nor bytes.
        """
        settings = TextSettings() if settings is None else settings
        if self.is_text and not self.reads_bytes:
            raise ValueError(f"vocab_size is {self.config['vocab_size']}, expected 256: text is made of bytes")
        texts = Texts.of([prompts] if isinstance(prompts, str | bytes) else prompts)
        lengths = cast(Tensor, texts.lengths).to(self.device)
        watches = [StopWatch(settings.stop) for _ in texts.ids]
        for drawn in self.continue_ids(texts.ids.to(self.device), lengths, settings, rng=rng):
            yield [watch.push(symbol) for watch, symbol in zip(watches, drawn.tolist(), strict=True)]
            if all(watch.has_ended for watch in watches):
                return
        yield [watch.finish() for watch in watches]

    def generate_text(
        self, prompts: Text | Sequence[Text], settings: TextSettings | None = None, *, rng: Rng | None = None
    ) -> list[bytes]:
        """Return what follows each prompt, without the prompt; arguments and errors as in `stream_text`."""
        parts = list(self.stream_text(prompts, settings, rng=rng))
        return [b"".join(pieces) for pieces in zip(*parts, strict=True)]
