"""VAR: a class-conditional transformer that predicts all tokens of a level at once, from what the coarser levels add up to.

    p(tokens | class) = product over levels k, over tokens i of k, of p(token i | class, all levels before k)

The tokenizer is a residual quantizer over levels (`hiergen.bottlenecks.multiscale`). What predicts level k is the sum of the levels before
it, averaged over the cells of k; the first level is predicted from the class alone. A step of generation is

    logits = head(blocks(embed(area(F -> grid k)), cache))
    ids of level k = draw(null + w_k (logits - null))           null: the logits for "no class"; w_k = 1 + (w - 1) k / (K - 1)
    F += phi(bicubic(codes of the ids -> full grid))

A generator never calls a tokenizer, so it holds a copy of the tokenizer's codebook and filters (`take_quantizer`).

Letters: `b` batch, `n` tokens, `c` channels of a code, `d` channels, `v` vocabulary.
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

from hiergen.bottlenecks.multiscale import MultiScaleQuantizer
from hiergen.generators.base import Generator, StepCallback
from hiergen.generators.conditioning import (
    TextCondition,
    TextRows,
    Unconditional,
    check_condition,
    condition_table,
    drop_labels,
    embed_condition,
    resolve_labels,
    resolve_texts,
    with_unguided_labels,
)
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.guidance import guide
from hiergen.generators.next_scale.blocks import NextScaleBlock
from hiergen.generators.next_scale.initialization import init_weights
from hiergen.generators.next_scale.ladder import read_ladder
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.generators.sampling import draw_ids, truncate
from hiergen.known import Known
from hiergen.nn.blocks.layers import Linear, make_norm
from hiergen.nn.blocks.transformer import modulate
from hiergen.nn.cache import KVCache
from hiergen.nn.constants import Constants
from hiergen.nn.depth.stack import BlockStack, PlanJson, generating
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.running.checkpointing import CheckpointedModule
from hiergen.nn.running.precision import without_autocast
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json
from hiergen.seeding import Rng, draw_exponential, draws_of


class NextScaleAR(Generator, CheckpointedModule):  # type: ignore[misc]  # see Generator
    """Autoregression over levels: VAR.

    Args:
        level_specs: The tokenizer's levels as JSON (`specs_to_json`), coarse to fine: maps of one vocabulary and code width.
        num_classes: Number of classes; the class embedding has one row more, for no class. None for texts.
        text_shape: Rows and channels of the features of texts, in place of the classes (`TextRows`); None for classes.
        text_encoder: What makes the features, such as `{"name": "bytes"}` (`TextTable`).
        dim: Channels of a token inside the transformer.
        depth: Number of transformer blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the feed-forward layers over `dim`.
        use_qk_norm: Compare only the directions of queries and keys, with a learned factor per head.
        shares_modulation: One linear layer modulates all blocks, each of which adds an offset; False gives each block its own.
        num_filters: Number of filters of the tokenizer's quantizer (`MultiScaleQuantizer`).
        filter_ratio: Share of the convolution in these filters.
        drop_path: Probability of dropping a branch of the last block, which falls evenly to 0 at the first; None is `0.1 depth / 24`.
        class_dropout: Probability that `loss` replaces a label by "no class"; with a hierarchy also that it leaves a level open.
        class_hierarchy: The classes as a `ClassHierarchy` in JSON, embedded as paths; any node is a label. None has a row per class.
        label_smoothing: Share of the target that is spread over all ids.
        gate_init: Factor of the initial weights that make the gates of the blocks.
        plan: Steps as JSON (`hiergen.nn.depth.plan`); None runs each block once.

    Raises:
        ValueError: If levels and sizes do not fit together.

    Source:
        VAR, arXiv:2404.02905.
    """

    settings_class = NextScaleSettings
    takes_known = frozenset({"levels", "places"})
    tokenizer_parts = ("quantizer",)
    _supports_gradient_checkpointing = True
    _no_split_modules = _repeated_blocks = ["NextScaleBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _keep_in_fp32_modules = ["quantizer"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]],
        num_classes: int | None = 1000,
        text_shape: Sequence[int] | None = None,
        text_encoder: Mapping[str, Any] | None = None,
        dim: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        use_qk_norm: bool = True,
        shares_modulation: bool = False,
        num_filters: int = 4,
        filter_ratio: float = 0.5,
        drop_path: float | None = None,
        class_dropout: float = 0.1,
        class_hierarchy: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.0,
        gate_init: float = 1e-3,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        self._specs = specs_from_json(level_specs)
        vocab_size, code_dim, grids = read_ladder(self._specs)
        sizes = tuple(spec.num_tokens for spec in self._specs)
        self._mask = BlockCausalMask(sizes)
        self.quantizer = MultiScaleQuantizer(
            vocab_size, code_dim, grids, num_filters=num_filters, filter_ratio=filter_ratio
        ).requires_grad_(False)
        self.class_embedding = condition_table(TextRows, dim, num_classes, text_shape, class_hierarchy, text_encoder)
        self.code_proj = Linear(code_dim, dim)
        self.start_embedding = nn.Parameter(torch.empty(sizes[0], dim))
        self.position_embedding = nn.Parameter(torch.empty(sum(sizes), dim))
        self.level_embedding = nn.Embedding(len(sizes), dim)
        self.shared_modulation = Linear(dim, 6 * dim) if shares_modulation else None
        last = 0.1 * depth / 24 if drop_path is None else drop_path
        options: dict[str, Any] = {
            "mlp_ratio": mlp_ratio,
            "use_qk_norm": use_qk_norm,
            "shares_modulation": shares_modulation,
            "reads_rows": text_shape is not None,
        }
        rates = [last * index / max(depth - 1, 1) for index in range(depth)]
        blocks = (NextScaleBlock(dim, num_heads, drop_path=rate, **options) for rate in rates)
        self.blocks = BlockStack(blocks, plan, dim=dim)
        self.norm = make_norm("layer", dim)
        self.head_modulation = Linear(dim, 2 * dim)
        self.head = Linear(dim, vocab_size)
        self._constants = Constants(mask=self._mask.dense("cpu"), levels=self._mask.groups("cpu"))
        init_weights(self, gate_init=gate_init)

    @property
    def specs(self) -> tuple[LevelSpec, ...]:
        return self._specs

    @property
    def makes_unconditional(self) -> bool:
        return self.config["class_dropout"] > 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all levels."""
        return self._mask.num_tokens

    @torch.no_grad()
    def take_quantizer(self, quantizer: MultiScaleQuantizer) -> NextScaleAR:
        """Copy the codebook and filters of the tokenizer whose tokens this generator makes; return self.

        Raises:
            ValueError: If they are of other sizes.
        """
        own = self.quantizer
        if (own.grids, own.filter_ratio, own.filter_of) != (
            quantizer.grids,
            quantizer.filter_ratio,
            quantizer.filter_of,
        ):
            raise ValueError(
                f"the tokenizer's quantizer has grids {quantizer.grids}, filter_ratio {quantizer.filter_ratio} and filters "
                f"{quantizer.filter_of}; this generator expects {own.grids}, {own.filter_ratio} and {own.filter_of}"
            )
        theirs = quantizer.state_dict()
        for name, tensor in own.state_dict().items():
            if tensor.shape != theirs[name].shape:
                raise ValueError(
                    f"the tokenizer's quantizer has {name} of {tuple(theirs[name].shape)}, this generator expects {tuple(tensor.shape)}"
                )
            tensor.copy_(theirs[name])
        return self

    def forward(self, ids: Int[Tensor, "b n"], condition: Tensor | TextCondition) -> Float[Tensor, "b n v"]:
        """Return the logits of every token, each from the levels before its own.

        Args:
            ids: All tokens, int64, coarse to fine. The tokens of the last level are not read.
            condition: Class labels `(b,)`, int64; `num_classes` stands for no class. With a hierarchy also nodes, or paths `(b, l)`. Or texts
                that are `aligned`.

        Raises:
            ValueError: If the sequence has another length than the levels, or labels and ids differ in number.
        """
        if ids.shape[1] != self.num_tokens:
            raise ValueError(
                f"ids holds {ids.shape[1]} tokens per sample, this generator's levels hold {self.num_tokens}"
            )
        check_condition(condition, len(ids), self.class_embedding)
        with torch.no_grad():
            codes = self.quantizer.inputs(ids)
        with without_autocast(ids.device):
            label, rows = embed_condition(self.class_embedding, condition)
            x = torch.cat((self._embed(label, None, 0), self._embed(label, codes, self._specs[0].num_tokens)), dim=1)
        mask, shared = self._constants.on(x.device)["mask"], self._shared(label)
        return self._predict(self.blocks(x, shared, mask=mask, **rows), label)

    def loss(
        self, pyramid: TokenPyramid, condition: Tensor | TextCondition, *, rng: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the mean cross-entropy of all tokens in nats, the share that is predicted exactly, and both of the last level ("tail").

        Args:
            pyramid: All levels.
            condition: Class labels `(b,)`, int64, 0 to `num_classes - 1`; or texts.
            rng: Source of the draw of which labels are dropped, in train mode. Dropped branches follow PyTorch's global generator.

        Raises:
            ValueError: If the pyramid is of another tokenizer or lacks levels.
        """
        self.check_pyramid(pyramid)
        ids, condition = pyramid.concat(), resolve_texts(condition, self.class_embedding)
        if self.training:
            null_label, dropout = self.config["num_classes"], self.config["class_dropout"]
            condition = drop_labels(condition, null_label, dropout, self.class_embedding, rng=rng)
        logits = self(ids, condition).float()
        smoothing = self.config["label_smoothing"]
        losses = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none", label_smoothing=smoothing)
        hits, tail = (logits.detach().argmax(dim=-1) == ids).float(), self._specs[-1].num_tokens
        return {
            "loss": losses.mean(),
            "accuracy": hits.mean(),
            "tail_loss": losses.detach().view_as(ids)[:, -tail:].mean(),
            "tail_accuracy": hits[:, -tail:].mean(),
        }

    @torch.no_grad()
    def generate(
        self,
        condition: Tensor | TextCondition | Unconditional,
        settings: NextScaleSettings | None = None,
        *,
        known: Known | None = None,
        rng: Rng | None = None,
        callback: StepCallback | None = None,
    ) -> TokenPyramid:
        """Return one pyramid per label, generated coarse to fine: of ids, or of mixtures of codes where `settings.smooth`.

        Args:
            condition: Class labels `(b,)`, int64, with a hierarchy any nodes; or texts; or `Unconditional`, where they were dropped.
            settings: Guidance, truncation, early stop; None samples without guidance from all of the distribution.
            known: Ids that are given, of levels or of places in them. All places of a level are drawn, and then the codes of those that are
                given are put in theirs; the next level reads both. A level that is given whole is not drawn.
            rng: Source of the tokens, all of a level in one call, sample after sample; a `SampleRng` draws each sample by itself.
            callback: Called after each level with its index and the levels that are complete.

        Random draws:
            Per level `(b, n, v)` exponential numbers, and with `smooth` as many again behind them.

        Raises:
            ValueError: If a label or `settings.num_levels` is out of range.
            FloatingPointError: If the logits of a level hold NaN or infinity.
        """
        settings = NextScaleSettings() if settings is None else settings
        table, null_label = self.class_embedding, self.config["num_classes"]
        condition = resolve_labels(condition, null_label, self.config["class_dropout"], self.device, table)
        count = self._count_levels(settings.num_levels)
        known = self.check_known(known, len(condition), settings.num_levels)
        if known is not None and known.is_complete(count) and not settings.smooth:
            return known.pyramid
        total, levels, specs = self.quantizer.zeros(len(condition)), [], self._specs
        if settings.is_guided:
            condition = with_unguided_labels(condition, null_label, settings.guidance_against, table)
        if settings.smooth:
            specs = tuple(dataclasses.replace(spec, vocab_size=None) for spec in specs)
        finite = FiniteSteps(type(self).__name__, "logits")
        with generating(self):
            steps = _Steps(
                self, condition, sum(spec.num_tokens for spec in specs[:count]), use_cache=settings.use_cache
            )
            for level in range(count):
                logits = steps.logits(self.quantizer.pool(total, level) if level else None)
                finite.note(logits, f"level {level} of {count}")
                if settings.is_guided:
                    conditional, null = logits.chunk(2)
                    logits = guide(conditional, null, settings.scale_at(level, max(len(specs) - 1, 1)))
                held = None if known is None or level >= len(known.pyramid) else known.level(level)
                ids, codes = self._draw(logits, settings, level, held, rng)
                levels.append(codes if settings.smooth else ids)
                total = total + self.quantizer.grow(codes, level)
                if callback is not None:
                    callback(level, TokenPyramid(tuple(levels), specs[: level + 1]))
        finite.check()
        return TokenPyramid(tuple(levels), specs[:count])

    def id_logits(self, ids: Int[Tensor, "b n"], condition: Any) -> Float[Tensor, "b n v"]:
        num_classes, dropout = self.config["num_classes"], self.config["class_dropout"]
        return self(ids, resolve_labels(condition, num_classes, dropout, self.device, self.class_embedding))

    def _draw(
        self,
        logits: Tensor,
        settings: NextScaleSettings,
        level: int,
        held: tuple[Tensor, Tensor] | None,
        rng: Rng | None,
    ) -> tuple[Int[Tensor, "b n"], Float[Tensor, "b n c"]]:
        """Return the ids of a level and their codes, or mixtures of codes; `held` are ids that are given, and where they are."""
        if held is not None:
            is_drawn, own = ~held[1].all(dim=1), self.quantizer.embed(held[0])
            if not bool(is_drawn.any()):
                return held[0], own
            rng = draws_of(rng, is_drawn)
        ids = draw_ids(logits, settings, rng=rng)
        codes = self.quantizer.embed(ids)
        if settings.smooth:
            codes = self._mix(truncate(logits, settings), level / max(len(self._specs) - 1, 1), rng)
        if held is None:
            return ids, codes
        return torch.where(held[1], held[0], ids), torch.where(held[1][..., None], own, codes)

    def _mix(self, logits: Tensor, done: float, rng: Rng | None) -> Tensor:
        """Return mixtures of codes with Gumbel noise, sharper and sharper towards the last level."""
        noise = -draw_exponential(logits.shape, rng=rng, device=logits.device).log()
        temperature = max(0.27 * (1 - 0.95 * done), 0.005)
        return self.quantizer.mix((((1 + done) * logits + noise) / temperature).softmax(dim=-1))

    def _embed(self, label: Tensor, codes: Tensor | None, start: int) -> Tensor:
        """Return the inputs at the positions from `start` on: those of the first level from the label, others from pooled sums of codes."""
        if codes is None:
            x = label[:, None] + self.start_embedding
        else:
            x = self.code_proj(codes.to(self.code_proj.weight.dtype))
        end = start + x.shape[1]
        levels = self._constants.on(x.device)["levels"][start:end]
        return x + self.level_embedding(levels) + self.position_embedding[start:end]

    def _shared(self, label: Tensor) -> Tensor:
        """Return what the blocks make their modulation of."""
        return label if self.shared_modulation is None else self.shared_modulation(F.silu(label))

    def _predict(self, x: Tensor, label: Tensor) -> Tensor:
        scale, shift = self.head_modulation(F.silu(label)).chunk(2, dim=-1)
        return self.head(modulate(self.norm(x), shift, scale))

    def _count_levels(self, wanted: int | None) -> int:
        count = len(self._specs) if wanted is None else wanted
        if not 1 <= count <= len(self._specs):
            raise ValueError(f"num_levels is {count}, expected 1 to {len(self._specs)}")
        return count


class _Steps:
    """The passes of one generation, a level each: what depends on the labels alone is computed once, and earlier levels are kept.

    Args:
        model: The generator.
        labels: Labels of all passes that run side by side.
        num_tokens: Tokens of all levels that will be asked for.
        use_cache: Keep keys and values of earlier levels; False keeps their inputs.
    """

    def __init__(self, model: NextScaleAR, labels: Tensor | TextCondition, num_tokens: int, *, use_cache: bool) -> None:
        self._model = model
        self._label, self._rows = embed_condition(model.class_embedding, labels)
        shared, stack = model._shared(self._label), model.blocks
        self._modulations = [stack.call_at(index, "modulate", shared) for index in range(stack.num_steps)]
        self._cache = KVCache(stack.num_steps, num_tokens) if use_cache else None
        self._inputs: Tensor | None = None
        self._done = 0

    def logits(self, codes: Tensor | None) -> Float[Tensor, "b n v"]:
        """Return the logits of the next level in float32, from pooled sums of codes (None for the first level)."""
        model, label = self._model, self._label
        if codes is not None and len(codes) < len(label):
            codes = codes.repeat(len(label) // len(codes), 1, 1)
        with without_autocast(label.device):
            x = model._embed(label, codes, self._done)
        size, mask = x.shape[1], None
        if self._cache is None:
            self._inputs = x = x if self._inputs is None else torch.cat((self._inputs, x), dim=1)
            mask = model._constants.on(x.device)["mask"][: x.shape[1], : x.shape[1]]
        caches = None if self._cache is None else self._cache.layers
        x = model.blocks(x, caches=caches, each=self._modulations, mask=mask, is_modulated=True, **self._rows)
        self._done += size
        return model._predict(x[:, -size:], label).float()
