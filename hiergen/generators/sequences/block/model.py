"""Block Transformer: a coarse transformer over blocks of ids, and a small one that sees a block's context and the block alone.

    E_i = embed(ids of block i)          C = blocks([start, E_0, E_1, ...])          ids of block i ~ decode(C before i, earlier ids of i)

Blocks have a fixed number L of ids, so the coarse transformer works, and keeps a cache, for one place in L. The start stands for the class,
or is learned; with it the first block is predicted too, from the start alone. The published models have no start: their first block is
context only.

Letters: `b` batch, `n` ids, `g` blocks, `l` ids of a block, `d` channels of a block, `r` rows of logits, `v` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.block.embedders import EmbedderKind, make_embedder
from hiergen.generators.sequences.block.token_decoders import BlockCache, TokenDecoderKind, make_token_decoder
from hiergen.generators.sequences.prediction import Prediction
from hiergen.generators.sequences.texts import valid_ids
from hiergen.nn.blocks.placed import NeoXBlock, Sight, SlotCache, new_caches, rotary_of
from hiergen.nn.depth.stack import BlockStack, PlanJson

FirstBlock = Literal["learned", "context"]
GenerationPositions = Literal["trained", "official"]


class BlockTransformerCache:
    """What a generation keeps of every row.

    Attributes:
        blocks: Keys and values of the coarse transformer's layers, a slot per block.
        token: What the token decoder keeps of the open block.
        open: Ids of the open block, `(b, l)`.
        fill: How many there are, `(b,)`.
        used: Slots of `blocks` in use, `(b,)`.
    """

    def __init__(self, blocks: list[SlotCache], num_slots: int, token: BlockCache, batch: int, length: int) -> None:
        self.blocks, self.num_slots, self.token = blocks, num_slots, token
        self.open = torch.zeros(batch, length, dtype=torch.int64)
        self.fill = self.used = torch.zeros(batch, dtype=torch.int64)


class BlockTransformer(SequenceModel):
    """Block Transformer: embedder, block decoder, token decoder.

    Args:
        level_specs: The tokenizer's levels as JSON, all discrete, of one vocabulary; None for text.
        num_classes: Number of classes; None for text. A class takes the place of the start.
        vocab_size: Number of ids of text; 256 for bytes.
        class_dropout: Probability that `loss` replaces a label by "no class".
        block_length: Ids of a block, L.
        dim: Channels of a block.
        depth: Layers of the block decoder.
        num_heads: Attention heads of the block decoder.
        token_dim: Channels of an id in the token decoder; None is `dim`.
        token_depth: Layers of the token decoder; None is `depth`.
        token_heads: Attention heads of the token decoder; None is `num_heads`.
        embedder: How the ids of a block become its vector: "lookup" joins short rows of a table, "lookup_projection" projects rows of
            `embedder_dim` channels; "roberta", "roberta_cls" and "t5" read inside the block with a small encoder.
        embedder_dim: Channels of an id in the embedder; "lookup" has `dim / L`.
        embedder_depth: Layers of an encoder in the embedder.
        embedder_heads: Attention heads of that encoder.
        embedder_ffn_dim: Hidden channels of that encoder.
        embedder_dropout: Probability of dropping a channel in a RoBERTa encoder.
        token_decoder: How the context reaches the ids: "prefix", "summation", "cross_attention" (a T5 decoder), or
            "cross_attention_summation".
        prefix_length: Vectors of the prefix.
        begin_id: Id that stands before the first of a block where there is no prefix.
        first_block: "learned" predicts the first block from a start; "context" never predicts it, as the published models.
        generation_positions: How steps number the prefix: "trained" as passes over whole sequences do; "official" numbers all of it 0, as
            the released generation does, which is not what the models were trained with.
        plan: Steps of the block decoder as JSON (`hiergen.nn.depth.plan`), without lags; None runs each layer once.

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        Block Transformer, arXiv:2406.02657, whose program decides where the paper is silent. The start is ours.
    """

    _no_split_modules = ["NeoXBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["NeoXBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]] | None = None,
        num_classes: int | None = None,
        vocab_size: int = 256,
        class_dropout: float = 0.1,
        block_length: int = 4,
        dim: int = 768,
        depth: int = 6,
        num_heads: int = 12,
        token_dim: int | None = None,
        token_depth: int | None = None,
        token_heads: int | None = None,
        embedder: str = "lookup",
        embedder_dim: int = 256,
        embedder_depth: int = 3,
        embedder_heads: int = 8,
        embedder_ffn_dim: int = 1024,
        embedder_dropout: float = 0.1,
        token_decoder: str = "prefix",
        prefix_length: int = 2,
        begin_id: int = 0,
        first_block: str = "learned",
        generation_positions: str = "trained",
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        vocab_size = self._read_task(level_specs, num_classes, vocab_size, class_dropout)
        _check_choices(embedder, token_decoder, first_block, generation_positions)
        for name, value in (("block_length", block_length), ("prefix_length", prefix_length), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if num_classes is not None and first_block == "context":
            raise ValueError("first_block is 'context', expected 'learned': a class predicts the first block too")
        self.block_length = block_length
        self.class_embedding = self._make_class_embedding(num_classes, dim)
        has_start = num_classes is None and first_block == "learned"
        self.start = nn.Parameter(torch.zeros(dim)) if has_start else None
        self.embed_block = make_embedder(
            cast(EmbedderKind, embedder),
            vocab_size,
            block_length,
            dim,
            width=embedder_dim,
            depth=embedder_depth,
            num_heads=embedder_heads,
            ffn_dim=embedder_ffn_dim,
            dropout=embedder_dropout,
        )
        self.blocks = BlockStack((NeoXBlock(dim, num_heads, 4 * dim) for _ in range(depth)), plan, dim=dim)
        self.norm = nn.LayerNorm(dim)
        self.decode_ids = make_token_decoder(
            cast(TokenDecoderKind, token_decoder),
            vocab_size,
            block_length,
            dim,
            token_dim or dim,
            token_depth or depth,
            token_heads or num_heads,
            prefix_length=prefix_length,
            begin_id=begin_id,
            shared_prefix_position=generation_positions == "official",
        )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for layer in (getattr(self.embed_block, "projection", None), self.decode_ids.expansion):
            if layer is not None:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        if self.start is not None:
            nn.init.normal_(self.start, std=0.02)

    @property
    def alignment(self) -> int:
        return self.block_length

    @property
    def _has_front(self) -> bool:
        return self.start is not None or self.class_embedding is not None

    def predict(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
        seen: Bool[Tensor, "b n"] | None = None,
    ) -> Prediction:
        """Return the logits of the id behind each position; arguments as in `forward`, and what is below.

        Args:
            seen: Which ids are no padding, for padding in front, as the released generation has it; None follows `lengths`.

        Raises:
            ValueError: If shapes do not fit, a text of a packed row does not begin with a block, or without a start there is no whole
                block.
        """
        self.check_inputs(ids, lengths, condition, starts)
        length, count = self.block_length, ids.shape[1]
        num_blocks = count // length + 1
        if num_blocks == 1 and not self._has_front:
            raise ValueError(
                f"ids holds {count} ids, expected at least the {length} of the first block: it is not predicted"
            )
        is_seen = valid_ids(ids, lengths) if seen is None else seen
        behind = (0, num_blocks * length - count)
        blocks = F.pad(ids, behind).unflatten(1, (-1, length))
        known = F.pad(is_seen, behind).unflatten(1, (-1, length))
        first = self._first_of_text(starts, num_blocks)
        context = self._contexts(blocks[:, :-1], known[:, :-1], condition, first)
        unscored = 0 if self._has_front else length
        predicted = slice(unscored // length, None)
        logits = self.decode_ids(
            context.flatten(0, 1), blocks[:, predicted].flatten(0, 1), known[:, predicted].flatten(0, 1), self.run
        )
        logits = F.pad(logits.unflatten(0, (len(ids), -1)).flatten(1, 2), (0, 0, unscored, 0))
        # Rows are the logits of x_0, x_1 ...; without a class x_0 is not predicted.
        left_out = int(condition is None)
        return Prediction(logits[:, left_out : count + 1], {}, {}, max(unscored - left_out, 0))

    def _first_of_text(self, starts: Tensor | None, num_blocks: int) -> Tensor | None:
        """Return which blocks begin a text of a packed row, `(b, g)`."""
        if starts is None:
            return None
        if not self._has_front:
            raise ValueError("starts was given, but first_block is 'context': texts are packed for 'learned' alone")
        length = self.block_length
        found = F.pad(starts, (0, num_blocks * length - starts.shape[1])).unflatten(1, (-1, length))
        if bool(found[..., 1:].any()):
            raise ValueError(f"starts has a text that begins inside a block, expected multiples of {length}")
        return found[..., 0]

    def _contexts(
        self,
        blocks: Int[Tensor, "b g l"],
        known: Bool[Tensor, "b g l"],
        condition: Tensor | None,
        first: Bool[Tensor, "b more"] | None,
    ) -> Float[Tensor, "b some d"]:
        """Return the context of every predicted block: of `g + 1` blocks, without a start of `g`."""
        x, is_key = self._embed(blocks, known), known.any(dim=2)
        if self._has_front:
            x = torch.cat((self._front(condition, len(blocks)), x), dim=1)
            is_key = F.pad(is_key, (1, 0), value=True)
        sight = Sight.of_rows(x.shape[1], device=x.device)
        mask = sight.mask & (is_key[:, None] | torch.eye(x.shape[1], dtype=torch.bool, device=x.device))
        positions = sight.positions
        if first is not None:
            # Each text counts from the start, which all texts of the row see. Block i stands at place i + 1.
            text = F.pad(first[:, :-1].long().cumsum(dim=1), (1, 0), value=-1)
            mask = mask & ((text[:, :, None] == text[:, None, :]) | (text[:, None, :] < 0))
            place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
            begins = F.pad(first[:, :-1], (1, 0)) | (place == 1)
            positions = place - torch.where(begins, place - 1, 0).cummax(dim=1).values
        sight = Sight(mask=mask, positions=positions)
        x = self.norm(self.blocks(x, sight, rotary_of(self.blocks.unwrapped, sight)))
        return x if first is None else torch.where(first[..., None], x[:, :1], x)

    def _embed(self, blocks: Int[Tensor, "b g l"], known: Bool[Tensor, "b g l"]) -> Float[Tensor, "b g d"]:
        if not blocks.shape[1]:
            return self.norm.weight.new_zeros(len(blocks), 0, self.config["dim"])
        return self.embed_block(blocks.flatten(0, 1), known.flatten(0, 1)).unflatten(0, blocks.shape[:2])

    def _front(self, condition: Tensor | None, batch: int) -> Float[Tensor, "b 1 d"]:
        """Return what stands before the first block: the class, or the learned start."""
        if self.class_embedding is not None:
            return self.class_embedding(condition)[:, None]
        assert self.start is not None
        return self.start.expand(batch, 1, -1)

    def start_cache(self, batch: int, num_ids: int) -> BlockTransformerCache:
        num_slots = num_ids // self.block_length + 2
        caches = new_caches(self.blocks.num_steps, batch, num_slots)
        return BlockTransformerCache(caches, num_slots, self.decode_ids.new_cache(batch), batch, self.block_length)

    @torch.no_grad()
    def prefill(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None,
        cache: BlockTransformerCache,
        condition: Tensor | None = None,
    ) -> Float[Tensor, "b v"]:
        self.check_inputs(ids, lengths, condition)
        batch, length, device = len(ids), self.block_length, ids.device
        lengths = torch.full((batch,), ids.shape[1], device=device) if lengths is None else lengths
        whole = lengths // length
        if not self._has_front and bool((whole < 1).any()):
            raise ValueError(
                f"the shortest text holds {int(lengths.min())} ids, expected at least the {length} of the first block: "
                "it is not predicted"
            )
        most = int(whole.max())
        # One block more than is whole, which may be open.
        blocks = F.pad(ids, (0, (most + 1) * length - ids.shape[1])).unflatten(1, (-1, length))
        known = F.pad(valid_ids(ids, lengths), (0, (most + 1) * length - ids.shape[1])).reshape(blocks.shape)
        x = self._embed(blocks[:, :most], known[:, :most])
        if self._has_front:
            x = torch.cat((self._front(condition, batch), x), dim=1)
        rows = torch.arange(batch, device=device)
        # Slots behind a row's whole blocks hold nonsense until its next blocks overwrite them.
        out = self._coarse(x, torch.arange(x.shape[1], device=device).expand(batch, -1), cache, rows)
        cache.used = whole + int(self._has_front)
        context = out[rows, cache.used - 1]
        cache.fill = lengths - whole * length
        cache.open = blocks[rows, whole]
        logits = self.decode_ids.begin(context, cache.token, rows)
        for place in range(length - 1):
            going = (cache.fill > place).nonzero()[:, 0]
            if len(going):
                places = torch.full_like(going, place)
                logits[going] = self.decode_ids.step(cache.open[going, place], places, cache.token, going)
        return logits

    @torch.no_grad()
    def step(self, ids: Int[Tensor, " b"], cache: BlockTransformerCache) -> Float[Tensor, "b v"]:
        rows = torch.arange(len(ids), device=ids.device)
        cache.open[rows, cache.fill] = ids
        ended = (cache.fill + 1 == self.block_length).nonzero()[:, 0]
        going = (cache.fill + 1 < self.block_length).nonzero()[:, 0]
        logits = self.norm.weight.new_empty(len(ids), self.decode_ids.table.num_embeddings)
        if len(going):
            logits[going] = self.decode_ids.step(ids[going], cache.fill[going], cache.token, going)
        if len(ended):
            blocks = cache.open[ended][:, None]
            x = self._embed(blocks, torch.ones_like(blocks, dtype=torch.bool))
            context = self._coarse(x, cache.used[ended, None], cache, ended)[:, 0]
            logits[ended] = self.decode_ids.begin(context, cache.token, ended)
        is_ended = cache.fill + 1 == self.block_length
        cache.used, cache.fill = cache.used + is_ended, torch.where(is_ended, 0, cache.fill + 1)
        return logits

    def _coarse(self, x: Tensor, slots: Tensor, cache: BlockTransformerCache, rows: Tensor) -> Tensor:
        """Return the block decoder's outputs for the next blocks of some rows."""
        sight = Sight.of_slots(slots, cache.num_slots, rows)
        rotary = rotary_of(self.blocks.unwrapped, sight)
        return self.norm(self.blocks(x, sight, rotary, caches=cache.blocks))


def _check_choices(embedder: str, token_decoder: str, first_block: str, generation_positions: str) -> None:
    choices = {
        "embedder": (embedder, EmbedderKind),
        "token_decoder": (token_decoder, TokenDecoderKind),
        "first_block": (first_block, FirstBlock),
        "generation_positions": (generation_positions, GenerationPositions),
    }
    for name, (value, known) in choices.items():
        if value not in get_args(known):
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(get_args(known))}")
