"""From the ids of a block to one vector: a table of short rows, or a small encoder that reads inside the block.

Letters: `m` blocks, `l` ids of a block, `d` channels of a block, `e` channels of an id.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.layers import GeluMLP, SelfAttention
from hiergen.nn.blocks.relative import RelativeStack

EmbedderKind = Literal["lookup", "lookup_projection", "roberta", "roberta_cls", "t5"]

#: Padding of RoBERTa: ids of this number have the place of the same number, and are not counted.
_ROBERTA_PADDING = 1
_ROBERTA_PLACES = 514
#: Begin tokens in front of a block that "roberta_cls" reads out.
_NUM_CLS = 3


class LookupEmbedder(nn.Module):
    """One row per id; the rows of a block in order are its vector, or are projected to it.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        dim: Channels of a block.
        width: Channels of a row if they are projected; None makes rows of `dim / length`, which are not.

    Raises:
        ValueError: If `length` does not divide `dim` and nothing is projected.
    """

    def __init__(self, vocab_size: int, length: int, dim: int, width: int | None) -> None:
        super().__init__()
        if width is None and dim % length:
            raise ValueError(f"dim is {dim}, expected a multiple of block_length {length} for embedder 'lookup'")
        self.table = nn.Embedding(vocab_size, width or dim // length)
        self.projection = nn.Linear(width * length, dim) if width else None

    def forward(self, ids: Int[Tensor, "m l"], seen: Bool[Tensor, "m l"]) -> Float[Tensor, "m d"]:
        rows = self.table(ids).flatten(1)
        return rows if self.projection is None else self.projection(rows)


class PostNormEncoderBlock(nn.Module):
    """x = LN(x + Attn(x)); x = LN(x + MLP(x)) under a mask, with biases everywhere and exact GELU: RoBERTa's block."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = GeluMLP(dim, ffn_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "m n e"], mask: Bool[Tensor, "m 1 1 n"]) -> Float[Tensor, "m n e"]:
        rate = self.dropout.p if self.training else 0.0
        attend = functools.partial(F.scaled_dot_product_attention, attn_mask=mask, dropout_p=rate)
        x = self.norm1(x + self.dropout(self.attention(x, attend=attend)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class RobertaEmbedder(nn.Module):
    """A small RoBERTa inside the block; its outputs, or those at begin tokens in front, are projected to the block's vector.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        dim: Channels of a block.
        width: Channels of an id.
        depth: Number of encoder blocks.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLPs.
        reads_cls: Read out three begin tokens (id 0) in front, instead of all ids.
        dropout: Probability of dropping a channel or an attention weight, in train mode.

    Source:
        RoBERTa, arXiv:1907.11692; Block Transformer, arXiv:2406.02657.
    """

    def __init__(
        self,
        vocab_size: int,
        length: int,
        dim: int,
        *,
        width: int,
        depth: int,
        num_heads: int,
        ffn_dim: int,
        reads_cls: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.reads_cls = reads_cls
        self.table = nn.Embedding(vocab_size, width)
        self.places = nn.Embedding(_ROBERTA_PLACES, width)
        self.kind = nn.Parameter(torch.zeros(1, width))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormEncoderBlock(width, num_heads, ffn_dim, dropout=dropout) for _ in range(depth)
        )
        self.projection = nn.Linear(width * (_NUM_CLS if reads_cls else length), dim)

    def forward(self, ids: Int[Tensor, "m l"], seen: Bool[Tensor, "m l"]) -> Float[Tensor, "m d"]:
        if self.reads_cls:
            ids, seen = F.pad(ids, (_NUM_CLS, 0)), F.pad(seen, (_NUM_CLS, 0), value=True)
        counted = ids != _ROBERTA_PADDING
        place = _ROBERTA_PADDING + counted.long().cumsum(dim=1) * counted
        x = self.dropout(self.norm(self.table(ids) + self.places(place) + self.kind))
        mask = _some_seen(seen)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.projection((x[:, :_NUM_CLS] if self.reads_cls else x).flatten(1))


class T5Embedder(nn.Module):
    """A small T5 encoder inside the block, projected to the block's vector.

    Args:
        vocab_size: Number of ids.
        length: Ids of a block.
        dim: Channels of a block.
        width: Channels of an id.
        depth: Number of encoder blocks.
        num_heads: Attention heads.
        ffn_dim: Hidden channels of the MLPs.
    """

    def __init__(
        self, vocab_size: int, length: int, dim: int, *, width: int, depth: int, num_heads: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, width)
        self.encoder = RelativeStack(width, depth, num_heads, ffn_dim, is_decoder=False)
        self.projection = nn.Linear(width * length, dim)

    def forward(self, ids: Int[Tensor, "m l"], seen: Bool[Tensor, "m l"]) -> Float[Tensor, "m d"]:
        mask = _some_seen(seen)[:, None].expand(-1, ids.shape[1], -1)
        return self.projection(self.encoder(self.table(ids), mask).flatten(1))


def _some_seen(seen: Bool[Tensor, "m n"]) -> Bool[Tensor, "m n"]:
    """Return the mask, with all seen where none is: a block of padding has no meaning, but must not be NaN."""
    return seen | ~seen.any(dim=1, keepdim=True)


def make_embedder(
    kind: EmbedderKind,
    vocab_size: int,
    length: int,
    dim: int,
    *,
    width: int,
    depth: int,
    num_heads: int,
    ffn_dim: int,
    dropout: float,
) -> nn.Module:
    """Return an embedder by its kind; the arguments are those of the classes."""
    if kind in ("lookup", "lookup_projection"):
        return LookupEmbedder(vocab_size, length, dim, None if kind == "lookup" else width)
    if kind == "t5":
        return T5Embedder(vocab_size, length, dim, width=width, depth=depth, num_heads=num_heads, ffn_dim=ffn_dim)
    return RobertaEmbedder(
        vocab_size,
        length,
        dim,
        width=width,
        depth=depth,
        num_heads=num_heads,
        ffn_dim=ffn_dim,
        reads_cls=kind == "roberta_cls",
        dropout=dropout,
    )
