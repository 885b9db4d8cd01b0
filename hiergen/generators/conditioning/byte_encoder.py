"""Bytes -> features of words: a small encoder of texts that is trained along with a generator, and needs no download.

A word's feature is the mean of the learned rows of its pieces: the word as a whole, and the runs of 3 bytes in it, its ends included.
So a word that was never seen has pieces of its relatives.

    "a red cat"  ->  a, red, cat;   cat  ->  mean of E[cat], E["<ca"], E["cat"], E["at>"]  ->  blocks over the words

Letters: `b` texts, `w` words, `p` pieces of a word, `d` channels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.conditioning.kinds import TextCondition
from hiergen.kernels.attention import attention
from hiergen.nn.blocks.transformer import TransformerBlock
from hiergen.pretrained.text_encoder import check_texts

#: Most pieces of a word that are read, the word as a whole among them.
_NUM_PIECES = 16
#: Number of bytes of a piece.
_RUN = 3


def read_words(texts: Sequence[str], num_words: int) -> TextCondition:
    """Return the pieces of the words of texts, in lower case: int64 `(b, w, p)` hashes, 0 for none, for a generator with a `ByteTextEncoder`.

    Words are runs of letters and digits.

    Args:
        texts: The texts.
        num_words: Most words that are read of a text.

    Raises:
        TypeError: If one text is given in place of several.
        ValueError: If there is no text.
    """
    check_texts(texts)
    pieces = torch.zeros(len(texts), num_words, _NUM_PIECES, dtype=torch.int64)
    for row, text in enumerate(texts):
        for place, word in enumerate(re.findall(r"[^\W_]+", text.lower())[:num_words]):
            found = _hashes(word.encode())
            pieces[row, place, : len(found)] = torch.tensor(found)
    return TextCondition(pieces, pieces[..., 0] > 0)


def _hashes(word: bytes) -> list[int]:
    framed = b"<" + word + b">"
    runs = [framed[start : start + _RUN] for start in range(len(framed) - _RUN + 1)]
    return [1 + zlib.crc32(piece) for piece in (b" " + word, *runs)][:_NUM_PIECES]


class ByteTextEncoder(nn.Module):
    """Encodes what `read_words` read.

    Args:
        dim: Channels of a word's features.
        num_words: Most words per text.
        num_pieces: Rows of the table of pieces; pieces of equal hashes share a row.
        depth: Number of transformer blocks over the words of a text, which tell them their places and neighbors; 0 leaves words as they are.
        num_heads: Attention heads of a block.

    Raises:
        ValueError: If a size is less than 1, or `depth` less than 0.

    Source:
        Words as means of hashed pieces: fastText, arXiv:1607.04606.
    """

    def __init__(self, dim: int, num_words: int, *, num_pieces: int = 8192, depth: int = 1, num_heads: int = 4) -> None:
        super().__init__()
        for name, size in (("dim", dim), ("num_words", num_words), ("num_pieces", num_pieces), ("depth", depth + 1)):
            if size < 1:
                least, given = (0, depth) if name == "depth" else (1, size)
                raise ValueError(f"{name} of the text encoder is {given}, expected at least {least}")
        self.num_words = num_words
        self.pieces = nn.Embedding(num_pieces, dim)
        self.places = nn.Parameter(torch.zeros(num_words, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, pieces: Int[Tensor, "b w p"], mask: Bool[Tensor, "b w"]) -> Float[Tensor, "b w d"]:
        """Return the features of the words; rows of padding are 0.

        Args:
            pieces: Hashes of the pieces of each word, 0 for none.
            mask: True where a row is a word.

        Raises:
            ValueError: If there are more words than it reads.
        """
        if pieces.shape[1] > self.num_words:
            raise ValueError(f"the texts have {pieces.shape[1]} words, this encoder reads {self.num_words}: cut them")
        is_piece = (pieces > 0)[..., None]
        rows = self.pieces(pieces % self.pieces.num_embeddings) * is_piece
        # Near unit size, whatever the number of pieces.
        x = self.norm(rows.sum(dim=2) / is_piece.sum(dim=2).clamp(min=1))
        if self.blocks:
            x = x + self.places[: pieces.shape[1]]
            # Padding sees itself alone, so that no row is without a key.
            allowed = mask[:, None, None] | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
            for block in self.blocks:
                x = block(x, attend=lambda query, key, value: attention(query, key, value, mask=allowed))
        return x * mask[..., None]
