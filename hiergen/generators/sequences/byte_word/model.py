"""Bytes, words, bytes: a small causal encoder of bytes, a large backbone of words, a small decoder that goes on with the encoder's bytes.

    h = encode(bytes)       w_j = pool(h of word j)       y = backbone(w)       decoder(h, with y_j-1 added to every byte of word j)

Words follow a fixed rule (`words`), or are the levels of a tokenizer. The decoder hears of a word when the next has begun: what it knows
of the word at hand, it knows from the bytes. A class is a symbol in front, and a word of its own.

Letters: `b` batch, `n` ids, `w` words, `s` symbols of a word, `d` channels of a symbol, `e` channels of a word, `v` vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.byte_word.generation import ByteWordCache, close_words, read_word_ends
from hiergen.generators.sequences.byte_word.layout import WordLayout, starts_in_rows
from hiergen.generators.sequences.byte_word.parts import DecoderLayer, WordPooling
from hiergen.generators.sequences.prediction import Prediction
from hiergen.nn.blocks.layers import RMSNorm
from hiergen.nn.blocks.placed import LlamaBlock, Sight, rotary_of
from hiergen.nn.depth.stack import BlockStack, PlanJson


class ByteWordTransformer(SequenceModel):
    """A hierarchical autoregressive transformer of bytes and words.

    Args:
        level_specs: The tokenizer's levels as JSON, all discrete, of one vocabulary, which are the words; None for text.
        num_classes: Number of classes; None for text.
        vocab_size: Number of ids of text; only bytes, 256, have words.
        class_dropout: Probability that `loss` replaces a label by "no class".
        dim: Channels of a word.
        depth: Layers of the backbone.
        num_heads: Attention heads of the backbone, and of pooling.
        num_kv_heads: Heads of keys and values in the backbone; None is as many.
        ffn_dim: Hidden channels of the backbone's feed-forward layers.
        byte_dim: Channels of a byte in the encoder and the decoder.
        byte_heads: Attention heads of both.
        byte_ffn_dim: Hidden channels of both.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        window: Number of bytes that encoder and decoder see, the byte itself counted.
        use_qk_norm: Normalize the queries and keys of each head.
        max_word_bytes: Most bytes of a word.
        rope_theta: Base of the rotary frequencies of bytes.
        word_rope_theta: Base of the rotary frequencies of words in the backbone.
        plan: Steps of the backbone as JSON (`hiergen.nn.depth.plan`), without lags; None runs each layer once.

    Raises:
        ValueError: If an argument is out of range or two do not fit together.

    Source:
        arXiv:2501.10322 and arXiv:2603.15953, in the form of the released TFree-HAT models, as it was described to us. What does nothing there is
        left out: a decoder layer's attention to the one vector of its word is the value of that vector.
    """

    _no_split_modules = ["LlamaBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["LlamaBlock"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        *,
        level_specs: Sequence[dict[str, Any]] | None = None,
        num_classes: int | None = None,
        vocab_size: int = 256,
        class_dropout: float = 0.1,
        dim: int = 4096,
        depth: int = 32,
        num_heads: int = 32,
        num_kv_heads: int | None = 8,
        ffn_dim: int = 14336,
        byte_dim: int = 1024,
        byte_heads: int = 8,
        byte_ffn_dim: int = 2816,
        encoder_depth: int = 6,
        decoder_depth: int = 4,
        window: int = 768,
        use_qk_norm: bool = False,
        max_word_bytes: int = 100,
        rope_theta: float = 10000.0,
        word_rope_theta: float = 500000.0,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        vocab_size = self._read_task(level_specs, num_classes, vocab_size, class_dropout)
        if level_specs is None and vocab_size != 256:
            raise ValueError(f"vocab_size is {vocab_size}, expected 256: words are made of bytes")
        for name, value in (("window", window), ("max_word_bytes", max_word_bytes), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.class_embedding = self._make_class_embedding(num_classes, byte_dim)
        self.byte_embedding = nn.Embedding(vocab_size, byte_dim)
        byte_block = {"use_qk_norm": use_qk_norm}
        self.encoder = nn.ModuleList(
            LlamaBlock(byte_dim, byte_heads, byte_ffn_dim, **byte_block) for _ in range(encoder_depth)
        )
        self.pooling = WordPooling(byte_dim, dim, num_heads, use_qk_norm=use_qk_norm, theta=rope_theta)
        layers = (
            LlamaBlock(dim, num_heads, ffn_dim, num_kv_heads=num_kv_heads, use_qk_norm=use_qk_norm)
            for _ in range(depth)
        )
        self.backbone = BlockStack(layers, plan, dim=dim)
        self.first_word = nn.Parameter(torch.zeros(dim))
        self.decoder = nn.ModuleList(
            DecoderLayer(byte_dim, dim, LlamaBlock(byte_dim, byte_heads, byte_ffn_dim, **byte_block))
            for _ in range(decoder_depth)
        )
        self.norm = RMSNorm(byte_dim)
        self.head = nn.Linear(byte_dim, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for vector in (self.first_word, self.pooling.latent):
            nn.init.normal_(vector, std=0.02)

    @property
    def num_front(self) -> int:
        """Number of symbols in front of the ids: 1 with a class."""
        return int(self.class_embedding is not None)

    def predict(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None = None,
        condition: Tensor | None = None,
        *,
        starts: Bool[Tensor, "b n"] | None = None,
    ) -> Prediction:
        self.check_inputs(ids, lengths, condition, starts)
        layout = self.lay_out(ids, lengths, starts)
        encoded = self.encode(self.embed(ids, condition), layout)
        words = self.think(self.pooling(encoded, layout), layout)
        logits = self.decode(encoded, self.shift(words, layout), layout)
        bytes_per_word = ids.new_tensor(layout.word.shape[1]) / layout.counts.float().mean()
        return Prediction(logits, {}, {"symbols_per_word": bytes_per_word})

    def lay_out(self, ids: Tensor, lengths: Tensor | None, starts: Tensor | None = None) -> WordLayout:
        """Return the words of every row, on the device of `ids`."""
        front, count = self.num_front, ids.shape[1]
        own = [count] * len(ids) if lengths is None else lengths.tolist()
        if self.is_text:
            marks = torch.zeros_like(ids, dtype=torch.bool) if starts is None else starts
            texts = [sorted({0, *row.nonzero()[:, 0].tolist()}) for row in marks.cpu()]
            words = starts_in_rows(ids, own, texts, max_bytes=self.config["max_word_bytes"])
        else:
            begins = [place for place in self.level_starts if place < count]
            words = [[0, *(place + front for place in begins if place < length)] for length in own]
            texts = [[0] for _ in own]
        return WordLayout.of(words, texts, [length + front for length in own], count + front).to(ids.device)

    @property
    def level_starts(self) -> list[int]:
        """Place of the first token of each level."""
        return [0, *itertools.accumulate(spec.num_tokens for spec in self._specs)][:-1]

    def embed(self, ids: Int[Tensor, "b n"], condition: Tensor | None) -> Float[Tensor, "b symbols d"]:
        """Return the embeddings of the symbols: the class, if there is one, and the ids."""
        x = self.byte_embedding(ids)
        if self.class_embedding is None:
            return x
        return torch.cat((self.class_embedding(condition)[:, None], x), dim=1)

    def byte_sight(self, layout: WordLayout) -> Sight:
        """Return what each symbol of whole rows sees: its text, in the window."""
        sight = Sight.of_rows(layout.word.shape[1], device=layout.word.device, window=self.config["window"])
        same = layout.text[:, :, None] == layout.text[:, None, :]
        return Sight(mask=sight.mask & same, positions=layout.place)

    def encode(self, x: Float[Tensor, "b n d"], layout: WordLayout) -> Float[Tensor, "b n d"]:
        """Return the encoder's output for whole rows."""
        sight = self.byte_sight(layout)
        rotary = rotary_of(self.encoder, sight, self.config["rope_theta"])
        for block in self.encoder:
            x = self.run(block, x, sight, rotary)
        return x

    def think(self, x: Float[Tensor, "b w e"], layout: WordLayout) -> Float[Tensor, "b w e"]:
        """Return the backbone's output for whole rows of words."""
        sight = Sight.of_rows(x.shape[1], device=x.device)
        same = layout.word_text[:, :, None] == layout.word_text[:, None, :]
        sight = Sight(mask=sight.mask & same, positions=layout.word_place)
        return self.backbone(x, sight, rotary_of(self.backbone.unwrapped, sight, self.config["word_rope_theta"]))

    def shift(self, words: Float[Tensor, "b w e"], layout: WordLayout) -> Float[Tensor, "b n e"]:
        """Return for each symbol the backbone's output of the word before its own."""
        before = torch.cat((self.first_word.expand(len(words), 1, -1), words[:, :-1]), dim=1)
        before = torch.where((layout.word_place == 0)[..., None], self.first_word, before)
        return before.gather(1, layout.word[..., None].expand(-1, -1, words.shape[-1]))

    def decode(
        self, x: Float[Tensor, "b n d"], words: Float[Tensor, "b n e"], layout: WordLayout
    ) -> Float[Tensor, "b n v"]:
        """Return the logits of whole rows; `words` is the word vector of each symbol."""
        sight = self.byte_sight(layout)
        rotary = rotary_of(self.decoder, sight, self.config["rope_theta"])
        for layer in self.decoder:
            x = self.run(layer, x, words, sight, rotary)
        return self.head(self.norm(x))

    def start_cache(self, batch: int, num_ids: int) -> ByteWordCache:
        return ByteWordCache(
            batch,
            num_ids + self.num_front,
            depths=(len(self.encoder), self.backbone.num_steps, len(self.decoder)),
        )

    @torch.no_grad()
    def prefill(
        self,
        ids: Int[Tensor, "b n"],
        lengths: Int[Tensor, " b"] | None,
        cache: ByteWordCache,
        condition: Tensor | None = None,
    ) -> Float[Tensor, "b v"]:
        self.check_inputs(ids, lengths, condition)
        batch, device = len(ids), ids.device
        own = torch.full((batch,), ids.shape[1], device=device) if lengths is None else lengths
        layout = self.lay_out(ids, own)
        rows, count = torch.arange(batch, device=device), ids.shape[1] + self.num_front
        # What the padding writes is overwritten by the symbols that come in its places.
        slots = torch.arange(count, device=device).expand(batch, -1)
        encoded = self.encode_slots(self.embed(ids, condition), slots, cache, rows)
        places = torch.arange(layout.members.shape[1], device=device).expand(batch, -1)
        words = self.think_slots(self.pooling(encoded, layout), places, cache, rows)
        shifted = self.shift(words, layout)
        logits = self.decode_slots(encoded, shifted, slots, cache, rows)
        used = own + self.num_front
        cache.begin(layout, encoded, used, shifted[rows, used - 1], ids, own)
        return logits[rows, used - 1]

    @torch.no_grad()
    def step(self, ids: Int[Tensor, " b"], cache: ByteWordCache) -> Float[Tensor, "b v"]:
        rows = torch.arange(len(ids), device=ids.device)
        encoded = self.encode_slots(self.byte_embedding(ids)[:, None], cache.used[:, None], cache, rows)
        cache.encoded[rows, cache.used] = encoded[:, 0]
        ends = read_word_ends(self, ids, cache)
        # Where a character told at its last byte that a word began sooner, its bytes are decoded again with the new word vector.
        vectors = close_words(self, ends, cache)
        logits = ids.new_empty(len(ids), self.head.out_features, dtype=self.head.weight.dtype)
        for count in sorted({len(row) for row in vectors}):
            some = torch.tensor([row for row, found in enumerate(vectors) if len(found) == count], device=ids.device)
            slots = cache.used[some, None] - torch.arange(count - 1, -1, -1, device=ids.device)
            words = torch.stack([torch.stack(vectors[row]) for row in some.tolist()])
            x = cache.encoded[some[:, None], slots]
            logits[some] = self.decode_slots(x, words, slots, cache, some)[:, -1]
        cache.used = cache.used + 1
        return logits

    def encode_slots(self, x: Tensor, slots: Tensor, cache: ByteWordCache, rows: Tensor) -> Tensor:
        """Return the encoder's output for the next symbols of some rows."""
        sight = Sight.of_slots(slots, cache.num_slots, rows, window=self.config["window"])
        rotary = rotary_of(self.encoder, sight, self.config["rope_theta"])
        for block, layer in zip(self.encoder, cache.encoder, strict=True):
            x = block(x, sight, rotary, layer)
        return x

    def think_slots(self, x: Tensor, slots: Tensor, cache: ByteWordCache, rows: Tensor) -> Tensor:
        """Return the backbone's output for the next words of some rows."""
        sight = Sight.of_slots(slots, cache.num_slots, rows)
        rotary = rotary_of(self.backbone.unwrapped, sight, self.config["word_rope_theta"])
        return self.backbone(x, sight, rotary, caches=cache.backbone)

    def decode_slots(self, x: Tensor, words: Tensor, slots: Tensor, cache: ByteWordCache, rows: Tensor) -> Tensor:
        """Return the logits of the next symbols of some rows."""
        sight = Sight.of_slots(slots, cache.num_slots, rows, window=self.config["window"])
        rotary = rotary_of(self.decoder, sight, self.config["rope_theta"])
        for layer, kept in zip(self.decoder, cache.decoder, strict=True):
            x = layer(x, words, sight, rotary, kept)
        return self.head(self.norm(x))
