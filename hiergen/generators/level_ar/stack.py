"""The blocks of `LevelAR`, plain or in chains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.blocks.layers import RMSNorm
from hiergen.nn.depth.chains import ChainBlock, ChainLinear, ChainNorm, chain_ends


def build_blocks(
    dim: int, depth: int, num_heads: int, hidden: int, *, chains: Sequence[int] | None, share_kv: bool, **dropout: float
) -> tuple[list[Any], RMSNorm | ChainNorm, tuple[int, ...]]:
    """Return blocks, the norm behind them, and the channels of the first chain, the first two, ..., all.

    Args:
        dim: Channels of all chains.
        depth: Number of blocks.
        num_heads: Attention heads.
        hidden: Hidden size of the feed-forward layers.
        chains: Heads of each chain; None for one chain.
        share_kv: Whether all chains read keys and values of the first one.
        dropout: Probabilities that every block takes.

    Raises:
        ValueError: If the chains do not share out the heads.
    """
    if chains is None:
        return [CachedBlock(dim, num_heads, hidden, **dropout) for _ in range(depth)], RMSNorm(dim), (dim,)
    if sum(chains) != num_heads:
        raise ValueError(f"chains is {list(chains)}, expected num_heads, {num_heads}, in all")
    blocks = [ChainBlock(dim, chains, hidden, share_kv=share_kv, **dropout) for _ in range(depth)]
    return blocks, ChainNorm(dim, chains), chain_ends(chains, dim)


def init_weights(module: nn.Module) -> None:
    """Draw the weights of a module: standard deviation 0.02; between chains they are zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, ChainLinear):
        module.clear()
