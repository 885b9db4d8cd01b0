"""Between bytes and words: pooling by a learned query, and decoder layers that add a word's vector to its bytes.

Letters: `b` batch, `n` symbols, `w` words, `s` symbols of a word, `d` channels of a symbol, `e` channels of a word.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.generators.sequences.byte_word.layout import WordLayout
from hiergen.nn.blocks.layers import RMSNorm
from hiergen.nn.blocks.placed import LlamaBlock, Sight, SlotCache
from hiergen.nn.positions import apply_rotary, rotary_table


class WordPooling(nn.Module):
    """out(attention of one learned query to the symbols of a word). The query is turned by the word's number, keys by the symbols' places.

    Args:
        dim: Channels of a symbol.
        word_dim: Channels of a word.
        num_heads: Attention heads.
        use_qk_norm: Normalize the query and the keys of each head.
        theta: Base of the rotary frequencies.
    """

    def __init__(self, dim: int, word_dim: int, num_heads: int, *, use_qk_norm: bool, theta: float) -> None:
        super().__init__()
        if num_heads < 1 or word_dim % (2 * num_heads):
            raise ValueError(f"dim is {word_dim}, expected a multiple of 2 * num_heads = {2 * num_heads}")
        self.head_dim, self.theta = word_dim // num_heads, theta
        self.latent = nn.Parameter(torch.zeros(word_dim))
        self.query = nn.Linear(word_dim, word_dim, bias=False)
        self.key, self.value = (nn.Linear(dim, word_dim, bias=False) for _ in range(2))
        self.out = nn.Linear(word_dim, word_dim, bias=False)
        self.q_norm: nn.Module = RMSNorm(self.head_dim) if use_qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(self.head_dim) if use_qk_norm else nn.Identity()

    def forward(self, x: Float[Tensor, "b n d"], layout: WordLayout) -> Float[Tensor, "b w e"]:
        """Return the vector of each word of whole rows."""
        key = self._turn(self.k_norm(self._heads(self.key(x))), layout.place)
        value, rows = self._heads(self.value(x)), torch.arange(len(x), device=x.device)[:, None, None]
        key, value = key[rows, layout.members], value[rows, layout.members]
        query = self.q_norm(self._heads(self.query(self.latent))).expand(*layout.word_place.shape, -1, -1)
        query = self._turn(query, layout.word_place)
        # Words are the batch: (b w, h, 1 or s, k).
        attended = F.scaled_dot_product_attention(
            query.flatten(0, 1)[:, :, None],
            key.flatten(0, 1).transpose(1, 2),
            value.flatten(0, 1).transpose(1, 2),
            attn_mask=layout.is_member.flatten(0, 1)[:, None, None],
        )
        return self.out(attended.flatten(1).unflatten(0, layout.word_place.shape))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def _turn(self, heads: Float[Tensor, "b some h k"], places: Int[Tensor, "b some"]) -> Float[Tensor, "b some h k"]:
        table = rotary_table(places.reshape(-1, 1).double(), self.head_dim, theta=self.theta)
        return apply_rotary(heads, table.unflatten(1, places.shape)[..., None, :])


class DecoderLayer(nn.Module):
    """x += out(value(RMS(word vector))), then a Llama layer.

    Args:
        dim: Channels of a symbol.
        word_dim: Channels of a word.
        block: The layer.
    """

    def __init__(self, dim: int, word_dim: int, block: LlamaBlock) -> None:
        super().__init__()
        self.word_norm = RMSNorm(word_dim)
        self.value = nn.Linear(word_dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.block = block

    @property
    def attention(self) -> nn.Module:
        """The attention of the layer."""
        return self.block.attention

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        words: Float[Tensor, "b n e"],
        sight: Sight,
        rotary: Tensor,
        cache: SlotCache | None = None,
    ) -> Float[Tensor, "b n d"]:
        return self.block(x + self.out(self.value(self.word_norm(words))), sight, rotary, cache)
