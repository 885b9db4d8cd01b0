"""Masked generation of ids: all are hidden at first, and every step keeps those that it is most sure of.

A transformer reads the class and all tokens, the hidden ones as a mask, and gives the logits of all. Training hides a random share of the
tokens. A step of generation, with the noise G falling to 0, is

    logits     = guided logits of (class, tokens)
    new        = argmax(logits + G)                          at hidden places
    confidence = logits of the new ids + G                   not a probability; infinite at known places
    hidden     = the least sure, as many as the arccos schedule says

Letters: `b` batch, `n` tokens, `d` channels, `v` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    ConditionTable,
    TextCondition,
    TextRows,
    Unconditional,
    check_text_entries,
    class_table,
    drop_labels,
    resolve_labels,
    resolve_texts,
    with_unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.masked.ids.settings import MaskedIdsSettings, count_hidden, gumbel_noise, least_sure
from hiergen.generators.masked.ids.transformers import PostNormTransformer, SkipTransformer
from hiergen.known import Known
from hiergen.levels import shared_vocabulary
from hiergen.nn.blocks.layers import Linear
from hiergen.nn.depth.stack import PlanJson, generating
from hiergen.nn.running.precision import widen
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng, draw_uniform


class MaskedIds(Generator):
    """MaskGIT on discrete tokens: TiTok's generators.

    Args:
        level_specs: The tokenizer's levels as JSON (`specs_to_json`), all discrete, of one vocabulary; their tokens are one sequence.
        num_classes: Number of classes; the class embedding has one row more, for no class. None for texts.
        text_shape: Rows and channels of the features of texts, which stand in front of the tokens in place of the class; None for classes.
        text_encoder: What makes the features, such as `{"name": "bytes"}` (`TextTable`).
        blocks: "post_norm" (BERT's; TiTok-L-32 and TiTok-B-64) or "skip" (UViT; TiTok-S-128).
        dim: Channels of a token.
        depth: Number of blocks; "skip" has one more, in the middle.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLPs over `dim`.
        dropout: Probability of dropping a channel, or an attention weight.
        class_dropout: Probability that `loss` replaces a label by "no class"; with a hierarchy also that it leaves a level open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON: a class is embedded as a path, and any node of it is a label. None
            gives each class a row of its own.
        label_smoothing: Share of the target that is spread over the vocabulary.
        visible_weight: Weight of the tokens that were not hidden in the loss; that of hidden ones is 1.
        plan: Steps as JSON (`hiergen.nn.depth.plan`), for "post_norm" blocks and without lags; None runs each block once.

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        MaskGIT, arXiv:2202.04200; TiTok, arXiv:2406.07550, whose program decides where they differ.
    """

    settings_class = MaskedIdsSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    _repeated_blocks = ["PostNormBlock", "EncoderBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        blocks: Literal["post_norm", "skip"] = "post_norm",
        dim: int = 768,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        class_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.1,
        visible_weight: float = 0.1,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        self.vocab_size = shared_vocabulary(self._specs)
        self.num_tokens = sum(spec.num_tokens for spec in self._specs)
        for name, value in (("class_dropout", class_dropout), ("label_smoothing", label_smoothing)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}, expected 0 to 1")
        kinds = {"post_norm": PostNormTransformer, "skip": SkipTransformer}
        if blocks not in kinds:
            raise ValueError(f"blocks is {blocks!r}, expected 'post_norm' or 'skip'")
        # The last row of either stands for what is hidden: the mask, and no class.
        self.token_embedding = nn.Embedding(self.vocab_size + 1, dim)
        check_text_entries(num_classes, text_shape, text_encoder)
        self.class_embedding: ConditionTable
        if text_shape is None:
            self.class_embedding = class_table(cast(int, num_classes), dim, class_hierarchy)
        else:
            self.class_embedding = TextRows(text_shape[0], text_shape[1], dim, text_encoder, has_mean=False)
        if plan is not None and blocks == "skip":
            raise ValueError("plan is given for blocks 'skip', expected None: every block has a place among the skips")
        options = {} if plan is None else {"plan": plan}
        self.transformer = kinds[blocks](
            self.num_tokens + (1 if text_shape is None else text_shape[0]),
            dim,
            depth,
            num_heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            **options,
        )
        self._no_split_modules = ["PostNormBlock" if blocks == "post_norm" else "EncoderBlock"]  # type: ignore[assignment]
        self.head = Linear(dim, self.vocab_size)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and ".deltas." not in name:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if isinstance(self.class_embedding, ClassPathEmbedding | TextRows):
            self.class_embedding.reset_parameters()

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def makes_unconditional(self) -> bool:
        return self.config["class_dropout"] > 0

    def forward(
        self, ids: Int[Tensor, "b n"], condition: Int[Tensor, "b ..."] | TextCondition
    ) -> Float[Tensor, "b n v"]:
        """Return the logits of every token.

        Args:
            ids: Tokens, int64; the vocabulary's size stands for a hidden one.
            condition: Class labels `(b,)`; `num_classes` stands for no class. With a hierarchy also nodes, or paths `(b, l)`. Or
                texts that are `aligned`, which `generate` and `loss` see to.

        Raises:
            ValueError: If the sequence has another length than the levels.
        """
        if ids.shape[1] != self.num_tokens:
            raise ValueError(
                f"ids holds {ids.shape[1]} tokens per sample, this generator's levels hold {self.num_tokens}"
            )
        table = self.class_embedding
        front = table.rows(cast(TextCondition, condition)) if isinstance(table, TextRows) else table(condition)[:, None]
        x = torch.cat((front, self.token_embedding(ids)), dim=1)
        return self.head(self.transformer(x)[:, front.shape[1] :])

    def loss(
        self, pyramid: TokenPyramid, condition: Tensor | TextCondition, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted mean cross-entropy in nats, and the share of hidden tokens that is predicted exactly, a mean over samples.

        Args:
            pyramid: All levels.
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`; or texts.
            rng: Source of the draws, in this order: a uniform number per sample for how many tokens are hidden, one per token for which,
                and in train mode one per sample for whether its label is dropped. Module dropout follows PyTorch's global generator.

        Raises:
            ValueError: If the pyramid is of another tokenizer or lacks levels.
        """
        self.check_pyramid(pyramid)
        ids, condition = pyramid.concat(), resolve_texts(condition, self.class_embedding)
        counts = count_hidden(draw_uniform(ids.shape[:1], rng=rng, device=ids.device), self.num_tokens)
        ranks = draw_uniform(ids.shape, rng=rng, device=ids.device).argsort(dim=1)
        hidden = ranks < counts[:, None]
        if self.training:
            condition = drop_labels(
                condition, self.config["num_classes"], self.config["class_dropout"], self.class_embedding, rng=rng
            )
        logits = self(ids.masked_fill(hidden, self.vocab_size), condition)
        errors = F.cross_entropy(
            logits.float().transpose(1, 2), ids, reduction="none", label_smoothing=self.config["label_smoothing"]
        )
        weights = torch.where(hidden, 1.0, self.config["visible_weight"])
        found = (logits.detach().argmax(dim=-1) == ids) & hidden
        return {
            "loss": (weights * errors).sum() / (weights.sum() + 1e-8),
            "accuracy": (found.sum(dim=1) / hidden.sum(dim=1)).mean(),
        }

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | TextCondition | Unconditional,
        settings: MaskedIdsSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid of ids per label, with dropout off.

        Args:
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`, with a hierarchy any node; or texts; or `Unconditional`, where they
                were dropped in training.
            settings: Steps, noise and guidance; None takes `MaskedIdsSettings()`.
            known: Ids that are given at any places. They are visible from the start, and the schedule counts the others of each sample.
            rng: Source of the noise: for each step `(b, n, v)` uniform numbers and `(b, n)` more; a `SampleRng` draws each sample by
                itself.
            callback: Called after each step, with all levels after the last one and None before.

        Raises:
            ValueError: If a label is out of range.
            FloatingPointError: If the logits of a step hold NaN or infinity.
        """
        settings = MaskedIdsSettings() if settings is None else settings
        condition = resolve_labels(
            condition, self.config["num_classes"], self.config["class_dropout"], self.device, self.class_embedding
        )
        ids = torch.full((len(condition), self.num_tokens), self.vocab_size, device=self.device)
        known, given = self.check_known(known, len(condition)), None
        if known is not None:
            if known.is_complete(len(self._specs)):
                return known.pyramid
            held, given = known.sequence(self._specs)
            ids = torch.where(given, held, ids)
        finite = FiniteSteps(type(self).__name__, "logits")
        with generating(self):
            for step in range(settings.num_steps):
                logits = self._guided_logits(ids, condition, settings, step, rng)
                finite.note(logits, f"step {step} of {settings.num_steps}")
                ids = self._reveal(ids, logits, settings, step, rng, given)
                if callback is not None:
                    is_last = step + 1 == settings.num_steps
                    callback(step, TokenPyramid.split(ids, self._specs) if is_last else None)
        finite.check()
        return TokenPyramid.split(ids, self._specs)

    def _guided_logits(
        self, ids: Tensor, labels: Tensor | TextCondition, settings: MaskedIdsSettings, step: int, rng: Rng | None
    ) -> Float[Tensor, "b n v"]:
        total = settings.num_steps
        scale = settings.scale_at(step, total) if settings.is_guided else 1.0
        # The released program leaves out the pass without a class only where this schedule's other form has weight 0.
        is_plain = scale == 1 and not (settings.official_draws and settings.guidance_schedule == "power_cosine")
        if settings.official_draws:
            # It drops labels with probability 0 or 1, and draws numbers for that in each pass.
            for _ in range(1 if is_plain else 2):
                draw_uniform((len(ids),), rng=rng, device=ids.device)
        if is_plain:
            return widen(self(ids, labels))
        null_label, against = self.config["num_classes"], settings.guidance_against
        labels = with_unguided_labels(labels, null_label, against, self.class_embedding)
        both = widen(self(ids.repeat(2, 1), labels))
        conditional, null = both.chunk(2)
        return settings.guide(conditional, null, step, total)

    def _reveal(
        self,
        ids: Tensor,
        logits: Tensor,
        settings: MaskedIdsSettings,
        step: int,
        rng: Rng | None,
        given: Bool[Tensor, "b n"] | None,
    ) -> Int[Tensor, "b n"]:
        """Return the ids after a step, the least sure of the new ones hidden again."""
        left = 1 - (step + 1) / settings.num_steps
        if settings.anneal_softmax:
            logits = logits / (0.5 + 0.8 * left)
        noise, hidden = settings.temperature * left, ids == self.vocab_size
        new = self._noisy(logits, noise, settings, rng).argmax(dim=-1).where(hidden, ids)
        confidence = logits.gather(2, new[..., None]).squeeze(2).masked_fill(~hidden, torch.inf)
        confidence = self._noisy(confidence, noise, settings, rng)
        if step + 1 == settings.num_steps:
            return new
        if given is None:
            wanted = settings.num_hidden(step, self.num_tokens)
            again = least_sure(confidence, hidden, wanted, count_of_first=settings.official_draws)
            return new.masked_fill(again, self.vocab_size)
        # In float64, as `num_hidden`; some devices have none.
        counts = (~given).sum(dim=1, keepdim=True).cpu().double() * settings.share_hidden(step)
        again = least_sure(confidence, hidden, counts.floor().long().to(given.device))
        # A sample that is given whole has no token that could stay hidden.
        return new.masked_fill(again & ~given, self.vocab_size)

    def _noisy(self, values: Tensor, scale: float, settings: MaskedIdsSettings, rng: Rng | None) -> Tensor:
        if scale == 0 and not settings.official_draws:
            return values
        return values + scale * gumbel_noise(draw_uniform(values.shape, rng=rng, device=values.device))
