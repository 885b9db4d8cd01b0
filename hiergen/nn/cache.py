"""Keys and values of tokens that were already processed, in storage of fixed size that is filled a group of tokens at a time.

Letters: `b` batch, `h` heads, `n` tokens of the group, `t` all tokens so far, `k` channels of a head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer.

    The storage is allocated once and never grows. `append` returns views of exactly the filled part, so attention over the
    cache needs no mask: under a block-causal rule a group of queries sees every key up to its own end.
    """

    def __init__(
        self,
        batch: int,
        num_heads: int,
        num_tokens: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Left uninitialized: nothing past `length` is ever read.
        self._storage = torch.empty(2, batch, num_heads, num_tokens, head_dim, device=device, dtype=dtype)
        self.length = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that the storage can hold."""
        return self._storage.shape[3]

    def append(
        self, key: Float[Tensor, "b h n k"], value: Float[Tensor, "b h n k"]
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t k"]]:
        """Store a group's keys and values behind the earlier ones and return all so far, as views.

        Raises:
            ValueError: If the group does not fit or is of another batch size.
        """
        end = self.length + key.shape[2]
        if end > self.num_tokens:
            raise ValueError(f"the cache holds {self.num_tokens} tokens, a group of {key.shape[2]} would end at {end}")
        if key.shape[0] != self._storage.shape[1]:
            raise ValueError(f"the cache was made for a batch of {self._storage.shape[1]}, got {key.shape[0]}")
        self._storage[0, :, :, self.length : end] = key
        self._storage[1, :, :, self.length : end] = value
        self.length = end
        return self._storage[0, :, :, :end], self._storage[1, :, :, :end]

    def keep_first(self, batch: int) -> None:
        """Forget all samples but the first `batch` of them (no copy)."""
        self._storage = self._storage[:, :batch]


class KVCache:
    """One `LayerCache` for each layer of a transformer."""

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_heads: int,
        num_tokens: int,
        head_dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layers = [
            LayerCache(batch, num_heads, num_tokens, head_dim, device=device, dtype=dtype) for _ in range(num_layers)
        ]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length

    def keep_first(self, batch: int) -> None:
        """Forget all samples but the first `batch` of them (no copy)."""
        for layer in self.layers:
            layer.keep_first(batch)
