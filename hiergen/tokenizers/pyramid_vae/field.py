"""The occupancy of shapes as a function of the point: what the pyramid VAE decodes tokens to.

Letters: `b` batch, `p` points, `e` channels of an embedded point, `n` tokens of a level, `d` channels of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hiergen.nn.blocks.anchors import point_side
from hiergen.nn.blocks.perceiver import CrossBlock, KeyValue, SelfStack
from hiergen.nn.depth.plan import part_plan
from hiergen.tokenizers.pyramid_vae.config import PyramidVAEConfig

#: Largest logit of empty space.
EMPTY = -10.0


class Anchors(NamedTuple):
    """The places of a level's tokens.

    Attributes:
        embedding: Fourier embedding of each, `(n, e)`.
        places: What heads know of them (`hiergen.nn.blocks.anchors.anchor_side`).
    """

    embedding: Tensor
    places: Tensor


class FieldDecoder(nn.Module):
    """Tokens -> field: self-attention over the tokens, then one cross-attention block from each query point."""

    def __init__(self, layout: PyramidVAEConfig) -> None:
        super().__init__()
        width, num_heads, qkv_bias = layout.width, layout.num_heads, layout.qkv_bias
        self.head_dim = width // num_heads
        self.from_tokens = nn.Linear(layout.token_dim, width)
        self.stack = SelfStack(
            layout.decoder_depth,
            width,
            num_heads,
            qkv_bias=qkv_bias,
            plan=part_plan(layout.plan, "decoder", "encoder"),
        )
        self.query_projection = nn.Linear(layout.embed_dim, width)
        self.cross_block = CrossBlock(width, num_heads, qkv_bias=qkv_bias)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, 1)

    def read_tokens(self, tokens: Float[Tensor, "b n d"], anchors: Anchors | None = None) -> KeyValue:
        """Return the keys and values that every query of these shapes attends to; with anchors, the keys hold their places."""
        x = self.from_tokens(tokens.to(self.from_tokens.weight.dtype))
        if anchors is None:
            return self.cross_block.project_data(self.stack(x))
        x = x + self.query_projection(anchors.embedding.to(x.dtype))
        return self.cross_block.project_data(self.stack(x), anchors.places)

    def forward(
        self, embedding: Float[Tensor, "b p e"], key_value: KeyValue, places: Tensor | None = None
    ) -> Float[Tensor, "b p"]:
        x = self.query_projection(embedding.to(self.query_projection.weight.dtype))
        return self.output(self.norm(self.cross_block(x, key_value, places))).squeeze(-1)


class ShapeField:
    """The occupancy of a batch of shapes as a function of the point; what `PyramidVAE.decode` returns.

    The tokens' part of the decoder has run: a query costs one cross-attention block. Queries do not see each other. Gradients
    reach the tokens, the weights and the points.

    Args:
        decoder: The network.
        embed: The embedding of points.
        key_value: What points read of the tokens.
        extent: Half the side of the cube beyond which space is empty; None asks the network everywhere.
    """

    def __init__(
        self,
        decoder: FieldDecoder,
        embed: Callable[[Tensor], Tensor],
        key_value: KeyValue,
        extent: float | None = None,
    ) -> None:
        self._decoder = decoder
        self._embed = embed
        self._key_value = key_value
        self._extent = extent
        self._is_anchored = key_value[0].shape[-1] != decoder.head_dim

    @property
    def batch_size(self) -> int:
        return self._key_value[0].shape[0]

    @property
    def device(self) -> torch.device:
        return self._key_value[0].device

    def __getitem__(self, samples: slice) -> ShapeField:
        """Return the field of some shapes of the batch."""
        key, value = self._key_value
        return ShapeField(self._decoder, self._embed, (key[samples], value[samples]), self._extent)

    def query(self, points: Float[Tensor, "b p 3"], *, chunk_size: int | None = None) -> Float[Tensor, "b p"]:
        """Return one logit per point, positive inside.

        Args:
            points: Coordinates; the model is trained in [-1.05, 1.05]^3.
            chunk_size: Points to evaluate at once (bounds the memory, not the result); None for all.

        Raises:
            ValueError: If there are points for another number of shapes, or `chunk_size` is not positive.
        """
        if points.shape[0] != self.batch_size:
            raise ValueError(f"points are for {points.shape[0]} shapes, the field holds {self.batch_size}")
        if chunk_size is None:
            return self._read(points)
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, expected at least 1")
        return torch.cat([self._read(part) for part in points.split(chunk_size, dim=1)], dim=1)

    def _read(self, points: Tensor) -> Tensor:
        places = point_side(points) if self._is_anchored else None
        logits = self._decoder(self._embed(points), self._key_value, places)
        if self._extent is None:
            return logits
        beyond = (points.abs() > self._extent).any(dim=-1)
        return torch.where(beyond, logits.clamp(max=EMPTY), logits)

    def shape(self, index: int) -> Callable[[Tensor], Tensor]:
        """Return the field of one shape as a function `(p, 3) -> (p,)`, e.g. for `extract_mesh`."""
        if not 0 <= index < self.batch_size:
            raise ValueError(f"index is {index}, expected 0 to {self.batch_size - 1}")
        field = self[index : index + 1]
        return lambda points: field.query(points[None])[0]
