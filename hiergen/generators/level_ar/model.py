"""HAR: a class-conditional transformer that predicts the levels of discrete tokens, one group of tokens after another.

    p(tokens | class) = product over groups g, over tokens i of g, of p(token i | class, all groups before g)

Groups are single tokens at first, then all tokens that double the sequence: levels of 1, 1, 2, 4, 8 ... tokens take one step each. The
input sequence is as long as the token sequence, and input position p predicts token p. Position 0 holds the class; the others hold
tokens of the group before, and learned special embeddings where a group is larger than the one before it. A position sees its own group
and all earlier ones. A step of generation is

    logits = head(blocks(embed(ids of the group before), cache))
    ids of the group = draw(null + scale (logits - null))            null: the logits for "no class"

Letters: `b` batch, `n` tokens, `d` channels, `v` vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    TextCondition,
    TextPrefix,
    Unconditional,
    check_condition,
    condition_table,
    drop_labels,
    resolve_labels,
    resolve_texts,
    with_unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.guidance import guide
from hiergen.generators.level_ar.exits import ExitLosses, sum_errors
from hiergen.generators.level_ar.exits import exit_losses as losses_of_exits
from hiergen.generators.level_ar.group_layout import Segment, build_layout
from hiergen.generators.level_ar.matched import LevelConditions
from hiergen.generators.level_ar.rotary import rotary_of_inputs
from hiergen.generators.level_ar.settings import LevelARSettings
from hiergen.generators.level_ar.stack import build_blocks, init_weights
from hiergen.generators.sampling import draw_missing
from hiergen.known import Known
from hiergen.nn.blocks.layers import Linear, swiglu_dim
from hiergen.nn.cache import KVCache
from hiergen.nn.constants import Constants
from hiergen.nn.depth.stack import BlockStack, PlanJson, generating
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng


class LevelAR(Generator, CheckpointedModule):  # type: ignore[misc]  # see Generator
    """Autoregression over groups of tokens: HAR's levels (`layout="level"`) or single tokens (`layout="token"`).

    LlamaGen is `layout="token", rotary="grid"` on one level.

    Args:
        level_specs: The tokenizer's levels as JSON (`specs_to_json`), coarse to fine; all discrete, of one vocabulary.
        num_classes: Number of classes; the class embedding has one row more, for no class. None for a generator of texts.
        text_shape: Rows and channels of the features of texts that take the place of the class; None for classes.
        text_encoder: What makes the features, such as `{"name": "bytes"}` (`TextTable`).
        dim: Channels of a token inside the transformer.
        depth: Number of transformer blocks.
        num_heads: Attention heads.
        ffn_dim: Hidden size of the feed-forward layers; None is 8/3 of `dim`, rounded up to a multiple of 256.
        layout: "level": the first `num_ar_tokens` tokens one by one, then a step for each doubling of the sequence. "token": one by
            one to the end.
        num_ar_tokens: Number of tokens that "level" predicts one by one; the levels must hold this many times a power of two.
        num_special_tokens: Rows of the table of special embeddings. None is one less than the number of tokens, like the published
            weights, of which only the first half is ever read; no table with `layout="token"`.
        embedding_dropout: Probability of dropping a channel of the input sequence.
        attention_dropout: Probability of dropping a channel after the output projection of attention.
        ffn_dropout: Probability of dropping a channel after a feed-forward layer.
        class_dropout: Probability that `loss` replaces a label by "no class"; with a hierarchy also that it leaves a level open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON: a class is embedded as a path, and any node of it is a label. None
            gives each class a row of its own.
        level_conditions: Whether coarse tokens read the coarse part of the path alone (`hiergen.generators.level_ar.matched`).
        rope_theta: Base of the rotary frequencies.
        rotary: "sequence" turns by the place in the input sequence. "grid", for one level with a grid and `layout="token"`, turns by the
            row and the column of the token that is read; the class has no place, its queries and keys are zero.
        plan: Steps of the transformer as JSON (`hiergen.nn.depth.plan`): which of the `depth` blocks runs when. None runs each once.
        exit_losses: Weights of the losses of the plan's exits: "aggressive", "weighted" or "none", the last step's alone.
        exit_distillation: Whether earlier exits also learn from what the last step predicts.
        chains: Heads of each chain, `num_heads` in all: the first chains are a smaller model (`hiergen.nn.depth.chains`). None is one.
        share_kv: Whether all chains read keys and values of the first one.
        chain_losses: Whether the loss is the sum of those of the first chain, the first two, ..., all; otherwise that of all.

    Raises:
        ValueError: If levels, layout and sizes do not fit together.

    Source:
        ResTok, arXiv:2601.03955 (HAR); the transformer is LlamaGen's, arXiv:2406.06525.
    """

    settings_class = LevelARSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    _no_split_modules = ["CachedBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["CachedBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        ffn_dim: int | None = None,
        layout: str = "level",
        num_ar_tokens: int = 4,
        num_special_tokens: int | None = None,
        embedding_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        ffn_dropout: float = 0.1,
        class_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        level_conditions: bool = False,
        rope_theta: float = 10000.0,
        rotary: str = "sequence",
        plan: PlanJson | None = None,
        exit_losses: ExitLosses = "none",
        exit_distillation: bool = False,
        chains: Sequence[int] | None = None,
        share_kv: bool = False,
        chain_losses: bool = False,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        self._layout = build_layout(self._specs, layout, num_ar_tokens)
        self._segments = self._layout.segments
        if dim % (2 * num_heads):
            raise ValueError(f"dim is {dim}, expected a multiple of 2 * num_heads = {2 * num_heads}")
        num_special = self._layout.count_special_rows(num_special_tokens, of_levels=layout == "level")
        vocab_size = self._specs[0].vocab_size or 0
        hidden = swiglu_dim(dim) if ffn_dim is None else ffn_dim
        self.class_embedding = condition_table(TextPrefix, dim, num_classes, text_shape, class_hierarchy, text_encoder)
        self._matched = LevelConditions(self.class_embedding, self._specs) if level_conditions else None
        # A class is one input position, a text many: all inputs behind it move by this number.
        self._shift = self.class_embedding.num_tokens - 1 if isinstance(self.class_embedding, TextPrefix) else 0
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.special_embedding = nn.Embedding(num_special, dim) if num_special else None
        self.input_dropout = nn.Dropout(embedding_dropout)
        dropout = {"attention_dropout": attention_dropout, "ffn_dropout": ffn_dropout}
        blocks, norm, self.widths = build_blocks(
            dim, depth, num_heads, hidden, chains=chains, share_kv=share_kv, **dropout
        )
        if chains is not None:
            self._no_split_modules = ["ChainBlock"]  # type: ignore[assignment]
        if chain_losses and exit_losses != "none":
            raise ValueError(f"chain_losses is True and exit_losses {exit_losses!r}, expected one of the two")
        # In this order: the state of an optimizer counts parameters, also that of earlier checkpoints.
        self.blocks, self.norm = BlockStack(blocks, plan, dim=dim), norm
        self.head = Linear(dim, vocab_size, bias=False)
        table = rotary_of_inputs(rotary, self._specs, layout, dim // num_heads, rope_theta, self._shift)
        mask = BlockCausalMask((1,) * self._shift + self._layout.mask.sizes)
        self._constants = Constants(rotary=table, mask=mask.dense("cpu"))
        self.apply(init_weights)
        if isinstance(self.class_embedding, ClassPathEmbedding):
            self.class_embedding.reset_parameters()
        nn.init.zeros_(self.head.weight)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def makes_unconditional(self) -> bool:
        return self.config["class_dropout"] > 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all levels."""
        return self._layout.num_tokens

    @property
    def num_steps(self) -> int:
        """Steps that a full generation takes: 9 for 128 tokens of which 4 come one by one."""
        return len(self._layout.steps)

    def forward(self, ids: Int[Tensor, "b n"], condition: Tensor | TextCondition) -> Float[Tensor, "b n v"]:
        """Return the logits of every token, each from the groups before its own.

        Args:
            ids: All tokens, int64, coarse to fine. The tokens of the last group are not read.
            condition: Class labels `(b,)`, int64; `num_classes` stands for no class. With a hierarchy also nodes, or paths `(b, l)`. Or
                texts that are `aligned`, which `generate` and `loss` see to.

        Raises:
            ValueError: If the sequence has another length than the levels, or labels and ids differ in number.
        """
        if ids.shape[1] != self.num_tokens:
            raise ValueError(
                f"ids holds {ids.shape[1]} tokens per sample, this generator's levels hold {self.num_tokens}"
            )
        check_condition(condition, len(ids), self.class_embedding)
        x = self.input_dropout(self._embed(ids, condition, self._segments))
        return self.read(self._transform(x, condition)[:, self._shift :])

    def read(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n v"]:
        """Return the logits of transformed tokens, of all chains or of those that `x` holds."""
        normal = self.norm(x)
        if x.shape[-1] == self.widths[-1]:
            return self.head(normal)
        return F.linear(normal, self.head.weight[:, : x.shape[-1]])

    def chain_logits(self, ids: Int[Tensor, "b n"], condition: Tensor | TextCondition) -> list[Float[Tensor, "b n v"]]:
        """Return the logits of the first chain, of the first two and so on; the arguments are those of `forward`."""
        x = self._transform(self.input_dropout(self._embed(ids, condition, self._segments)), condition)
        return [self.read(x[:, self._shift :, :width]) for width in self.widths]

    def exit_logits(self, ids: Int[Tensor, "b n"], condition: Tensor | TextCondition) -> list[Float[Tensor, "b n v"]]:
        """Return the logits at every exit of the plan, those of `forward` last; the arguments are those of `forward`."""
        x = self.input_dropout(self._embed(ids, condition, self._segments))
        inputs, options = self.block_inputs(x, condition)
        return [self.read(found[:, self._shift :]) for found in self.blocks.at_exits(x, *inputs, **options)]

    def loss(
        self, pyramid: TokenPyramid, condition: Tensor | TextCondition, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy of all tokens, in nats, and the share that is predicted exactly.

        Args:
            pyramid: All levels.
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`; or texts.
            rng: Source of the draw of which labels are dropped, in train mode. Module dropout follows PyTorch's global generator.

        Raises:
            ValueError: If the pyramid is of another tokenizer or lacks levels.
        """
        self.check_pyramid(pyramid)
        ids = pyramid.concat()
        condition = resolve_texts(condition, self.class_embedding)
        if self.training:
            condition = drop_labels(
                condition, self.config["num_classes"], self.config["class_dropout"], self.class_embedding, rng=rng
            )
        if self.config["chain_losses"]:
            every = self.chain_logits(ids, condition)
            logits, loss = every[-1], sum_errors(every, ids)
        elif self.config["exit_losses"] == "none":
            logits = self(ids, condition)
            loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        else:
            every = self.exit_logits(ids, condition)
            kind, distills = self.config["exit_losses"], self.config["exit_distillation"]
            logits, loss = every[-1], losses_of_exits(every, ids, kind=kind, distills=distills)
        accuracy = (logits.detach().argmax(dim=-1) == ids).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | TextCondition | Unconditional,
        settings: LevelARSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
        on_exits: Callable[[Int[Tensor, " b"]], None] | None = None,
    ) -> TokenPyramid:
        """Return one pyramid of ids per label, generated coarse to fine with dropout off.

        Args:
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`, with a hierarchy any node; or texts, for a generator of
                texts; or `Unconditional`, where they were dropped in training.
            settings: Guidance, truncation, early stop; None samples without guidance from all of the distribution.
            known: Ids that are given, of levels, of a prefix of the sequence or of any places. Only later steps see them. A step whose
                tokens are all given is read and not drawn.
            rng: Source of the tokens, all of a step in one call, sample after sample; a `SampleRng` draws each sample by itself.
            callback: Called after each step with its index, the levels that are complete, and as `latents` all ids `(b, n)`. After a
                change all later steps read all tokens again, without the cache.
            on_exits: Called after each step with the number of the exit that each sample took.

        Raises:
            ValueError: If a label or `settings.num_levels` is out of range.
            FloatingPointError: If the logits of a step hold NaN or infinity.
        """
        settings = LevelARSettings() if settings is None else settings
        null, table = self.config["num_classes"], self.class_embedding
        condition = resolve_labels(condition, null, self.config["class_dropout"], self.device, table)
        batch, layout = len(condition), self._layout.of_levels(self._specs, settings.num_levels)
        # The schedule is that of all levels, so that stopping early changes nothing in the levels that are generated.
        scales, num_guided = settings.scales(self.num_steps), settings.num_guided_steps(layout)
        labels = condition
        if num_guided:
            labels = with_unguided_labels(condition, null, settings.guidance_against, table)
        ids, given = torch.zeros(batch, layout.num_tokens, dtype=torch.int64, device=self.device), None
        known = self.check_known(known, batch, settings.num_levels)
        if known is not None:
            if known.is_complete(settings.num_levels or len(self._specs)):
                return known.pyramid
            ids, given = known.sequence(self._specs[: settings.num_levels])
        cache = KVCache(self.blocks.num_steps, self._shift + layout.num_tokens) if settings.use_cache else None
        finite = FiniteSteps(type(self).__name__, "logits")
        exits = settings.exits(self.blocks, len(self._specs))
        widths = settings.widths(self.widths, len(self._specs), shares_kv=self.config["share_kv"])
        with generating(self):
            for index, step in enumerate(layout.steps):
                if index == num_guided and index > 0:
                    # From here on the half without a class is of no use to anyone.
                    labels = labels[:batch]
                    if cache is not None:
                        cache.keep_first(batch)
                # With a cache the step's own inputs are enough, without one all inputs so far are computed again.
                start, segments = (
                    (0, layout.prefix(index + 1).segments) if cache is None else (step.start, step.segments)
                )
                x, level = self._embed(ids, labels, segments), self._level_of(step.start)
                x, size = x[..., : widths[level]], step.end - step.start
                if exits is None:
                    logits = self.read(self._transform(x, labels, start, cache)[:, -size:])
                else:
                    inputs = self.block_inputs(x, labels, start, cache)
                    logits = exits.logits(self, x, inputs, size=size, level=level, batch=batch, cache=cache)
                    if on_exits is not None:
                        on_exits(exits.taken[-1])
                finite.note(logits, f"step {index} of {len(layout.steps)}, level {level}")
                if index < num_guided:
                    conditional, null = logits.float().chunk(2)
                    logits = guide(conditional, null, scales[index])
                own = slice(step.start, step.end)
                held = None if given is None else given[:, own]
                ids[:, own] = draw_missing(logits, ids[:, own], held, settings, rng=rng)
                changed = (
                    None if callback is None else callback(index, self._complete_levels(ids, step.end), latents=ids)
                )
                if changed is not None:
                    new = changed.concat() if isinstance(changed, TokenPyramid) else changed
                    ids[:, : new.shape[1]] = new
                    # It holds what was computed from the ids of before, and groups of several steps need a mask.
                    cache = None
        finite.check()
        return TokenPyramid.split(ids, self._specs)

    def id_logits(self, ids: Int[Tensor, "b n"], condition: Any) -> Float[Tensor, "b n v"]:
        num_classes, dropout = self.config["num_classes"], self.config["class_dropout"]
        return self(ids, resolve_labels(condition, num_classes, dropout, self.device, self.class_embedding))

    def count_steps(self, settings: LevelARSettings) -> int:
        return len(self._layout.of_levels(self._specs, settings.num_levels).steps)

    def _level_of(self, token: int) -> int:
        """Return the level that holds a token of the sequence."""
        return sum(end <= token for end in itertools.accumulate(spec.num_tokens for spec in self._specs))

    def _embed(self, ids: Tensor, condition: Tensor | TextCondition, segments: Sequence[Segment]) -> Tensor:
        """Return the input embeddings of some segments. `condition` may stack labels for several passes over one `ids`."""
        rows = len(condition)
        spans = [(part.start, part.end) for part in segments if part.kind == "token"]
        offset = spans[0][0] if spans else 0
        if spans:
            read = ids[:, offset : spans[-1][1]]
            tokens = self.token_embedding(read if rows == ids.shape[0] else read.repeat(rows // ids.shape[0], 1))
        pieces = []
        for part in segments:
            if part.kind == "condition":
                embedded = self._matched.first(condition) if self._matched else self.class_embedding(condition)
                pieces.append(embedded if isinstance(condition, TextCondition) else embedded[:, None])
            elif part.kind == "token":
                pieces.append(tokens[:, part.start - offset : part.end - offset])
            elif self.special_embedding is not None:
                pieces.append(self.special_embedding.weight[part.start : part.end].expand(rows, -1, -1))
        x = torch.cat(pieces, dim=1)
        return x if self._matched is None else x + self._matched.finer(condition, segments[0].first, x.shape[1])

    def _transform(
        self, x: Tensor, condition: Tensor | TextCondition, start: int = 0, cache: KVCache | None = None
    ) -> Tensor:
        """Return inputs from position `start` on after all blocks; a cache holds all inputs before them."""
        inputs, options = self.block_inputs(x, condition, start, cache)
        return self.blocks(x, *inputs, **options, caches=None if cache is None else cache.layers)

    def block_inputs(
        self, x: Tensor, condition: Tensor | TextCondition, start: int = 0, cache: KVCache | None = None
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """Return what a block takes beside inputs from position `start` on: positions, and the mask where no cache replaces it."""
        constants, begin = self._constants.on(x.device), start + self._shift if start else 0
        end = begin + x.shape[1]
        rotary, allowed = constants["rotary"][:, begin:end], constants["mask"][begin:end, :end]
        # Through a cache, what is seen is all that is there.
        mask = allowed if cache is None else None
        if isinstance(condition, TextCondition):
            # No token sees the padding of a text, which sees itself, so that no row is empty.
            is_seen = F.pad(condition.mask, (0, end - condition.mask.shape[1]), value=True)[:, None, None]
            mask = allowed & (is_seen | torch.eye(end, dtype=torch.bool, device=x.device)[begin:])
        return [rotary], {"mask": mask}
