"""RAR: autoregression over tokens in a random order, which training turns into the raster order.

    p(tokens | class, order) = product over i of p(token o_i | class, tokens o_0 .. o_(i-1), the place o_i)

Without the last condition the model could not know which place comes next. So every input carries two learned positions: that of its own
token, and that of the token to be predicted. The input sequence is

    position 0        cls            + P[0]
    position 1        class          + P[1]         + T[2 + o_0]
    position 2 + i    token o_i      + P[2 + o_i]   + T[2 + o_(i+1)]         the last one without T

and position 1 + i predicts token o_i. Every block is modulated by SiLU(class + S[position]), where S is not permuted.

Letters: `b` batch, `n` tokens, `d` channels, `v` vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
    TextRows,
    Unconditional,
    condition_table,
    drop_labels,
    embed_condition,
    resolve_labels,
    resolve_texts,
    with_unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.guidance import GuidanceSettings
from hiergen.generators.random_order.block import ModulatedNorm, PositionModulatedBlock
from hiergen.generators.sampling import DrawSettings, draw_missing
from hiergen.known import Known
from hiergen.levels import shared_vocabulary
from hiergen.nn.blocks.cross import RowReader
from hiergen.nn.blocks.layers import Linear
from hiergen.nn.cache import KVCache
from hiergen.nn.depth.stack import BlockStack, PlanJson, generating
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.running.precision import widen
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng, draw_uniform

#: Positions in front of the tokens: the cls token and the class.
_FRONT = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomOrderARSettings(GuidanceSettings, DrawSettings):
    """How `RandomOrderAR.generate` samples: guidance (r is the share of tokens known before the step), drawing, and what is below.

    Attributes:
        use_cache: Keep keys and values of earlier tokens. False computes the whole sequence again at every step: the same tokens, slower.
        official_draws: Draw from `rng` also the numbers that the released program draws first and that change nothing: the same seed then
            gives the same ids.
    """

    use_cache: bool = True
    official_draws: bool = False

    @classmethod
    def published(cls, size: str) -> RandomOrderARSettings:
        """Return the settings of the published ImageNet results of a size: gFID 1.95, 1.70, 1.50 and 1.48.

        Raises:
            ValueError: If the size is unknown.
        """
        known = {"b": (1.0, 16.0, 2.75), "l": (1.02, 15.5, 2.5), "xl": (1.02, 6.9, 1.5), "xxl": (1.02, 8.0, 1.2)}
        if size not in known:
            raise ValueError(f"size is {size!r}, expected one of {', '.join(known)}")
        temperature, scale, power = known[size]
        return cls(
            temperature=temperature, guidance_scale=scale, guidance_schedule="power_cosine", guidance_power=power
        )


class RandomOrderAR(Generator, CheckpointedModule):  # type: ignore[misc]  # see Generator
    """RAR: a causal transformer that is told the place of the token to predict.

    Args:
        level_specs: The tokenizer's levels as JSON (`specs_to_json`), all discrete, of one vocabulary; their tokens are one sequence.
        num_classes: Number of classes; the class embedding has one row more, for no class. None for texts.
        text_shape: Rows and channels of the features of texts, in place of the classes (`TextRows`); None for classes.
        text_encoder: What makes the features, such as `{"name": "bytes"}` (`TextTable`).
        dim: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLPs; None is four times `dim`.
        dropout: Probability of dropping an attention weight, or a channel after a linear layer of a block.
        class_dropout: Probability that `loss` replaces a label by "no class"; with a hierarchy also that it leaves a level open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON: a class is embedded as a path, and any node of it is a label. None
            gives each class a row of its own.
        num_position_rows: Rows of both tables of positions. None is as many as are read; the published weights have more.
        num_step_rows: Rows of the table of the modulation. None is as many as are read.

    Attributes:
        random_share: Share of the samples that `loss` gives a random order in train mode, the others are in raster order. 0 unless the
            training task sets it (`GeneratorTaskConfig.random_until`).

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        RAR, arXiv:2411.00776, whose program decides where the paper is silent.
    """

    settings_class = RandomOrderARSettings
    takes_known = frozenset({"levels", "places"})
    _supports_gradient_checkpointing = True
    _no_split_modules = _repeated_blocks = ["PositionModulatedBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        dim: int = 768,
        depth: int = 24,
        num_heads: int = 16,
        ffn_dim: int | None = None,
        dropout: float = 0.1,
        class_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        num_position_rows: int | None = None,
        num_step_rows: int | None = None,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        if not 0 <= class_dropout <= 1:
            raise ValueError(f"class_dropout is {class_dropout}, expected 0 to 1")
        vocab_size, self.num_tokens = shared_vocabulary(self._specs), sum(spec.num_tokens for spec in self._specs)
        needed = self.num_tokens + _FRONT
        for name, rows in (("num_position_rows", num_position_rows), ("num_step_rows", num_step_rows)):
            if rows is not None and rows < needed:
                raise ValueError(f"{name} is {rows}, expected at least {needed} for {self.num_tokens} tokens")
        self.random_share = 0.0
        self.cls_token = nn.Parameter(torch.zeros(1, dim))
        # The last row of the tokens is never read: the published table has a mask there.
        self.token_embedding = nn.Embedding(vocab_size + 1, dim)
        self.class_embedding = condition_table(TextRows, dim, num_classes, text_shape, class_hierarchy, text_encoder)
        self.position_embedding = nn.Parameter(torch.empty(num_position_rows or needed, dim))
        self.target_embedding = nn.Parameter(torch.empty(num_position_rows or needed, dim))
        self.step_embedding = nn.Parameter(torch.empty(num_step_rows or needed, dim))
        hidden = 4 * dim if ffn_dim is None else ffn_dim
        options: dict[str, Any] = {"dropout": dropout, "reads_rows": text_shape is not None}
        blocks = (PositionModulatedBlock(dim, num_heads, hidden, **options) for _ in range(depth))
        self.blocks = BlockStack(blocks, plan, dim=dim)
        self.norm_out = ModulatedNorm(dim)
        self.head = Linear(dim, vocab_size)
        self.apply(_init_weights)
        if isinstance(self.class_embedding, ClassPathEmbedding | TextRows):
            self.class_embedding.reset_parameters()
        for table in (self.position_embedding, self.target_embedding, self.step_embedding):
            nn.init.trunc_normal_(table, std=0.02)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def makes_unconditional(self) -> bool:
        return self.config["class_dropout"] > 0

    def forward(
        self,
        ids: Int[Tensor, "b m"],
        condition: Int[Tensor, "b ..."] | TextCondition,
        order: Int[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b next v"]:
        """Return the logits of the tokens one by one: those of the first from the class alone, and of one more than are given.

        Args:
            ids: The first tokens in the order, int64; none up to all.
            condition: Class labels `(b,)`; `num_classes` stands for no class. With a hierarchy also nodes, or paths `(b, l)`. Or
                texts that are `aligned`, which `generate` and `loss` see to.
            order: Place of each token, a permutation for each sample; None is the raster order.

        Raises:
            ValueError: If there are more ids than tokens, or the order is of another shape.
        """
        if ids.shape[1] > self.num_tokens:
            raise ValueError(
                f"ids holds {ids.shape[1]} tokens per sample, expected at most the {self.num_tokens} of this generator's levels"
            )
        if order is not None and order.shape != (len(ids), self.num_tokens):
            raise ValueError(f"order has shape {tuple(order.shape)}, expected {(len(ids), self.num_tokens)}")
        told, rows = embed_condition(self.class_embedding, condition)
        return self._logits(self._embed(ids, told, order), told, first=0, rows=rows)

    def loss(
        self, pyramid: TokenPyramid, condition: Tensor | TextCondition, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy of all tokens in nats, and the share that is predicted exactly.

        Args:
            pyramid: All levels.
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`; or texts.
            rng: Source of the draws in train mode, in this order: a uniform number per sample for whether its label is dropped; and with a
                `random_share`, one for whether its order is random, and one per token for the order. Module dropout follows PyTorch's
                global generator.

        Raises:
            ValueError: If the pyramid is of another tokenizer or lacks levels.
        """
        self.check_pyramid(pyramid)
        ids, order = pyramid.concat(), None
        condition = resolve_texts(condition, self.class_embedding)
        if self.training:
            condition = drop_labels(
                condition, self.config["num_classes"], self.config["class_dropout"], self.class_embedding, rng=rng
            )
            order = self.draw_orders(len(ids), rng=rng)
            ids = ids if order is None else ids.gather(1, order)
        # The last token predicts nothing.
        logits = self(ids[:, :-1], condition, order)
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids.flatten())
        accuracy = (logits.detach().argmax(dim=-1) == ids).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    # The share changes from step to step, and a compiled loss would be compiled again for each value.
    @torch.compiler.disable
    def draw_orders(self, batch: int, *, rng: Rng | None = None) -> Int[Tensor, "b n"] | None:
        """Return an order for each sample, a permutation for a `random_share` of them, else the raster order; None if all have that."""
        if self.random_share <= 0:
            return None
        device = self.head.weight.device
        is_random = draw_uniform((batch,), rng=rng, device=device) < self.random_share
        random = draw_uniform((batch, self.num_tokens), rng=rng, device=device).argsort(dim=1)
        return torch.where(is_random[:, None], random, torch.arange(self.num_tokens, device=device))

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | TextCondition | Unconditional,
        settings: RandomOrderARSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid of ids per label, generated in raster order with dropout off.

        Args:
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`, with a hierarchy any node; or texts; or `Unconditional`, where they
                were dropped in training.
            settings: Guidance and drawing; None samples without guidance from all of the distribution.
            known: Ids that are given, of a prefix in raster order or of any places. Only later tokens see them. A step whose token is given
                is read and not drawn.
            rng: Source of the tokens, all samples of a step in one call; a `SampleRng` draws each sample by itself.
            callback: Called after each step, with the levels that are complete by then.

        Raises:
            ValueError: If a label is out of range.
            FloatingPointError: If the logits of a step hold NaN or infinity.
        """
        settings = RandomOrderARSettings() if settings is None else settings
        condition = resolve_labels(
            condition, self.config["num_classes"], self.config["class_dropout"], self.device, self.class_embedding
        )
        batch, guided, labels = len(condition), settings.is_guided, condition
        if guided:
            null_label, against = self.config["num_classes"], settings.guidance_against
            labels = with_unguided_labels(labels, null_label, against, self.class_embedding)
        told, rows = embed_condition(self.class_embedding, labels)
        ids, given = torch.zeros(batch, self.num_tokens, dtype=torch.int64, device=self.device), None
        known = self.check_known(known, batch)
        if known is not None:
            if known.is_complete(len(self._specs)):
                return known.pyramid
            ids, given = known.sequence(self._specs)
        cache = KVCache(self.blocks.num_steps, self.num_tokens + 1) if settings.use_cache else None
        finite = FiniteSteps(type(self).__name__, "logits")
        if settings.official_draws:
            draw_uniform((batch,), rng=rng, device=self.device)
        with generating(self):
            for step in range(self.num_tokens):
                before = ids[:, :step].repeat(2 if guided else 1, 1)
                # Behind the first step a cache needs the newest token alone.
                first = step + 1 if cache is not None and step else 0
                x = self._embed(before, told, None, first)
                logits = widen(self._logits(x, told, first=first, cache=cache, rows=rows)[:, -1])
                finite.note(logits, f"step {step} of {self.num_tokens}")
                if guided:
                    conditional, null = logits.chunk(2)
                    logits = settings.guide(conditional, null, step, self.num_tokens)
                own = slice(step, step + 1)
                held = None if given is None else given[:, own]
                ids[:, own] = draw_missing(logits[:, None], ids[:, own], held, settings, rng=rng)
                if callback is not None:
                    callback(step, self._complete_levels(ids, step + 1))
        finite.check()
        return TokenPyramid.split(ids, self._specs)

    def id_logits(self, ids: Int[Tensor, "b n"], condition: Any) -> Float[Tensor, "b n v"]:
        """Return the logits of all ids in raster order; see `Generator.id_logits`."""
        num_classes, dropout = self.config["num_classes"], self.config["class_dropout"]
        return self(ids[:, :-1], resolve_labels(condition, num_classes, dropout, self.device, self.class_embedding))

    def _embed(
        self, ids: Int[Tensor, "b m"], told: Float[Tensor, "b d"], order: Int[Tensor, "b n"] | None, first: int = 0
    ) -> Float[Tensor, "b some d"]:
        """Return the inputs of the positions from `first` on; the tokens end at `ids`, the order goes on."""
        count = ids.shape[1]
        end = count + _FRONT
        if first >= _FRONT:
            x = self.token_embedding(ids[:, first - _FRONT :])
        else:
            front = torch.stack((self.cls_token.expand(len(ids), -1), told), dim=1)
            x = torch.cat((front, self.token_embedding(ids)), dim=1)[:, first:]
        targets = min(count + 1, self.num_tokens)
        if order is None:
            own = self.position_embedding[first:end]
            target = self.target_embedding[max(first, 1) + 1 : targets + _FRONT]
            own, target = own[None], target[None]
        else:
            places = torch.cat((torch.arange(_FRONT, device=ids.device).expand(len(ids), -1), _FRONT + order), dim=1)
            own = self.position_embedding[places[:, first:end]]
            target = self.target_embedding[places[:, max(first, 1) + 1 : targets + _FRONT]]
        # Neither the cls token nor the last token has anything to predict.
        start = 1 if first == 0 else 0
        return x + own + F.pad(target, (0, 0, start, end - first - start - target.shape[1]))

    def _logits(
        self,
        x: Float[Tensor, "b some d"],
        told: Float[Tensor, "b d"],
        *,
        first: int,
        rows: dict[str, Tensor],
        cache: KVCache | None = None,
    ) -> Float[Tensor, "b next v"]:
        """Return the logits of the positions from `first` on, without the cls token's."""
        steps = self.step_embedding[first : first + x.shape[1]]
        condition = F.silu(told[:, None] + steps)
        x = self.blocks(x, condition, caches=None if cache is None else cache.layers, **rows)
        skipped = 1 if first == 0 else 0
        return self.head(self.norm_out(x[:, skipped:], condition[:, skipped:]))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    if isinstance(module, RowReader):
        module.close()
    if isinstance(module, PositionModulatedBlock | ModulatedNorm):
        # After their parts: at the start every block is the identity.
        nn.init.zeros_(module.modulation.weight)
