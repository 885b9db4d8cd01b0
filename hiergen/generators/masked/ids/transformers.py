"""The two transformers of masked generation of ids: BERT's with post-norm blocks, and one with long skips (UViT).

Letters: `b` batch, `n` places: the condition and the tokens, `d` channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.transformer import EncoderBlock, PostNormBlock
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.running.checkpointing import CheckpointedModule


class PostNormTransformer(CheckpointedModule):
    """Embeddings plus learned positions, normalized, through post-norm blocks. It has no norm at the end.

    Args:
        num_places: Length of the sequence.
        dim: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLPs over `dim`.
        dropout: Probability of dropping an attention weight, an embedding's channel, and a channel of what a block adds.
        plan: Steps as JSON (`hiergen.nn.depth.plan`), none with a lag: a block normalizes the stream itself. None runs each block once.

    Source:
        BERT, arXiv:1810.04805, without its pooler.
    """

    def __init__(
        self,
        num_places: int,
        dim: int,
        depth: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        plan: PlanJson | None = None,
    ) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.empty(num_places, dim))
        # BERT tells two sentences apart by this table. All tokens are of the first kind; the second row is never read.
        self.type_embedding = nn.Parameter(torch.empty(2, dim))
        self.norm_in = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        hidden = int(dim * mlp_ratio)
        self.blocks = BlockStack(
            (PostNormBlock(dim, num_heads, hidden, dropout=dropout) for _ in range(depth)), plan, dim=dim
        )

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the embeddings of ids after the blocks."""
        x = self.dropout(self.norm_in(x + self.type_embedding[0] + self.position_embedding))
        return self.blocks(x)


class SkipTransformer(CheckpointedModule):
    """Pre-norm blocks of which each of the second half first reads the output of its mirror image in the first half.

    Args:
        num_places: Length of the sequence.
        dim: Channels of a token.
        depth: Number of blocks without the middle one, even.
        num_heads: Attention heads.
        mlp_ratio: Hidden channels of the MLPs over `dim`.
        dropout: Probability of dropping an attention weight, and a channel after a linear layer of a block.

    Raises:
        ValueError: If `depth` is odd.

    Source:
        U-ViT, arXiv:2209.12152, as TiTok's program has it.
    """

    def __init__(
        self, num_places: int, dim: int, depth: int, num_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth % 2:
            raise ValueError(f"depth is {depth}, expected an even number for blocks with skips")

        def block() -> EncoderBlock:
            return EncoderBlock(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                norm_eps=1e-5,
                attention_dropout=dropout,
                dropout=dropout,
                qkv_bias=False,
            )

        self.position_embedding = nn.Parameter(torch.empty(num_places, dim))
        self.in_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.mid_block = block()
        self.skips = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(depth // 2))
        self.out_blocks = nn.ModuleList(block() for _ in range(depth // 2))
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the embeddings of ids after the blocks, normalized."""
        x = x + self.position_embedding
        kept = []
        for block in self.in_blocks:
            x = self.run(block, x)
            kept.append(x)
        x = self.run(self.mid_block, x)
        for skip, block in zip(self.skips, self.out_blocks, strict=True):
            x = self.run(block, skip(torch.cat((x, kept.pop()), dim=-1)))
        return self.norm_out(x)
