"""The encoder-decoder of masked autoregressive generation: the encoder sees the visible tokens only, the decoder all places.

Visible tokens are picked by index, so every shape is known on the host. Letters: `b` batch, `p` rows of the prefix, `v` visible
tokens, `k` tokens asked for, `c` channels of a token, `d` width of the encoder, `w` width of the decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.transformer import EncoderBlock
from hiergen.nn.depth.plan import part_plan
from hiergen.nn.depth.stack import BlockStack, PlanJson
from hiergen.nn.initialization import xavier_linears
from hiergen.nn.running.checkpointing import CheckpointedModule


@dataclasses.dataclass(frozen=True)
class MaskedTransformerSize:
    """Sizes of a `MaskedTransformer`.

    Attributes:
        token_dim: Channels of a token.
        num_tokens: Places for tokens; each has its own learned position.
        num_prefix: Rows of the condition in front of them.
        encoder_dim: Width of the encoder.
        encoder_depth: Number of blocks of the encoder.
        encoder_heads: Attention heads of the encoder.
        decoder_dim: Width of the decoder.
        decoder_depth: Number of blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        mlp_ratio: Hidden width of a block's MLP over the block's width.
        norm_eps: Epsilon of the layer norms; the norm of the input always has 1e-6.
        attention_dropout: Probability of dropping an attention weight.
        dropout: Probability of dropping a channel after a projection.
        plan: Steps of "encoder" and "decoder" as JSON (`hiergen.nn.depth.plan`); None runs each block once.
    """

    token_dim: int
    num_tokens: int
    num_prefix: int
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    mlp_ratio: float
    norm_eps: float
    attention_dropout: float
    dropout: float
    plan: Mapping[str, PlanJson] | None = None

    @classmethod
    def of_config(cls, config: Any, **places: Any) -> MaskedTransformerSize:
        """Return the sizes; those that are no `places` are config entries of the same names."""
        names = [field.name for field in dataclasses.fields(cls) if field.name not in places]
        return cls(**places, **{name: config[name] for name in names})


def gather_tokens(x: Float[Tensor, "b n c"], index: Int[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """Return the tokens at `index` of every sample."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def scatter_tokens(
    x: Float[Tensor, "b n c"], index: Int[Tensor, "b k"], values: Float[Tensor, "b k c"]
) -> Float[Tensor, "b n c"]:
    """Return `x` with the tokens at `index` of every sample replaced, in the dtype of `x`."""
    return x.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), values.to(x.dtype))


class MaskedTransformer(CheckpointedModule):
    """Predicts one vector for every hidden token from the visible tokens and a prefix.

    Source:
        Autoregressive Image Generation without Vector Quantization, arXiv:2406.11838; the encoder-decoder is MAE's, arXiv:2111.06377.
        Positions are learned places, in 3-D too.
    """

    def __init__(self, size: MaskedTransformerSize) -> None:
        super().__init__()
        self.num_prefix = size.num_prefix
        self._compiled: Callable[..., Tensor] | None = None
        places = size.num_prefix + size.num_tokens
        self.token_proj = nn.Linear(size.token_dim, size.encoder_dim)
        self.token_norm = nn.LayerNorm(size.encoder_dim, eps=1e-6)
        self.encoder_positions = nn.Parameter(torch.empty(1, places, size.encoder_dim))
        self.encoder = _blocks(size, "encoder", "decoder")
        self.encoder_norm = nn.LayerNorm(size.encoder_dim, eps=size.norm_eps)
        self.decoder_proj = nn.Linear(size.encoder_dim, size.decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, size.decoder_dim))
        self.decoder_positions = nn.Parameter(torch.empty(1, places, size.decoder_dim))
        self.decoder = _blocks(size, "decoder", "encoder")
        self.decoder_norm = nn.LayerNorm(size.decoder_dim, eps=size.norm_eps)
        self.query_positions = nn.Parameter(torch.empty(1, size.num_tokens, size.decoder_dim))
        for table in (self.encoder_positions, self.decoder_positions, self.query_positions, self.mask_token):
            nn.init.normal_(table, std=0.02)
        xavier_linears(self)

    def embed_prefix(self, prefix: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        """Return the prefix as the encoder reads it; constant while generating."""
        return self.token_norm(prefix + self.encoder_positions[:, : self.num_prefix])

    def embed_tokens(self, tokens: Float[Tensor, "b v c"], index: Int[Tensor, "b v"]) -> Float[Tensor, "b v d"]:
        """Return the tokens that stand at `index` as the encoder reads them; a token's row does not depend on any other."""
        positions = self.encoder_positions[0, self.num_prefix :][index]
        return self.token_norm(self.token_proj(tokens.to(self.token_proj.weight.dtype)) + positions)

    def forward(
        self,
        prefix: Float[Tensor, "b p d"],
        rows: Float[Tensor, "b v d"],
        visible: Int[Tensor, "b v"],
        queries: Int[Tensor, "b k"],
        length: int,
    ) -> Float[Tensor, "b k w"]:
        """Return one vector for each of the places `queries`.

        Args:
            prefix: What `embed_prefix` returned.
            rows: What `embed_tokens` returned for the visible tokens.
            visible: Places of the visible tokens, each 0 to `length - 1`.
            queries: The places asked for, hidden or not.
            length: Places that the decoder sees: all of them, or fewer from the front.
        """
        front = torch.arange(self.num_prefix, device=visible.device).expand(len(visible), -1)
        places = torch.cat((front, self.num_prefix + visible), dim=1)
        transform = self._transform if self._compiled is None or self.training else self._compiled
        x = transform(torch.cat((prefix, rows), dim=1), places, self.num_prefix + length)
        # The final norm acts on every row alone, so it is applied to the rows asked for and no others.
        answers = self.decoder_norm(gather_tokens(x, self.num_prefix + queries))
        return answers + self.query_positions[0][queries]

    def compile_sampling(self, **options: Any) -> None:
        """Compile encoder and decoder for evaluation: one graph whatever the number of visible tokens.

        Args:
            options: Arguments of `torch.compile`.
        """
        self._compiled = torch.compile(self._transform, fullgraph=True, dynamic=True, **options)

    def _transform(self, rows: Tensor, places: Tensor, length: int) -> Tensor:
        """Return what stands at the first `length` places, prefix included, after both parts; hidden ones start as mask tokens."""
        x = self.decoder_proj(self.encoder_norm(self.encoder(rows)))
        x = scatter_tokens(self.mask_token.to(x.dtype).expand(len(x), length, -1), places, x)
        return self.decoder(x + self.decoder_positions[:, :length])


def _blocks(size: MaskedTransformerSize, part: str, other: str) -> BlockStack:
    dim, depth, num_heads = (getattr(size, f"{part}_{name}") for name in ("dim", "depth", "heads"))
    names = ("mlp_ratio", "norm_eps", "attention_dropout", "dropout")
    options = {name: getattr(size, name) for name in names}
    blocks = (EncoderBlock(dim, num_heads, **options) for _ in range(depth))
    return BlockStack(blocks, part_plan(size.plan, part, other), dim=dim, name=f"plan of the {part}")
