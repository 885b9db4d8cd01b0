"""Keys and values of tokens that were already processed, in storage of fixed size that is filled group by group.

Letters: `b` batch, `h` heads, `n` tokens of the group, `t` all tokens so far, `k` channels of a head.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer.

    The storage is allocated by the first group, in its batch size, device and dtype, and never grows. `append` returns views of
    exactly the filled part, so attention over the cache needs no mask: under a block-causal rule a group of queries sees every
    key up to its own end.

    Args:
        num_tokens: Number of tokens that the storage holds.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.length = 0
        self._storage: Tensor | None = None

    def append(
        self, key: Float[Tensor, "b h n k"], value: Float[Tensor, "b h n k"]
    ) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b h t k"]]:
        """Store a group's keys and values behind the earlier ones and return all so far, as views.

        Raises:
            ValueError: If the group does not fit, is of another batch size, or has more heads than the ones before.
        """
        batch, num_heads, size, head_dim = key.shape
        end = self.length + size
        if end > self.num_tokens:
            raise ValueError(f"the cache holds {self.num_tokens} tokens, a group of {size} would end at {end}")
        if self._storage is None:
            # Left uninitialized: nothing past `length` is ever read.
            self._storage = key.new_empty(2, batch, num_heads, self.num_tokens, head_dim)
        if batch != self._storage.shape[1]:
            raise ValueError(f"the cache holds a batch of {self._storage.shape[1]}, got {batch}")
        if num_heads > self._storage.shape[2]:
            raise ValueError(f"the cache holds {self._storage.shape[2]} heads, got {num_heads}")
        # Of a model that runs with fewer heads than before, those.
        keys, values = self._storage[0, :, :num_heads], self._storage[1, :, :num_heads]
        keys.narrow(2, self.length, size).copy_(key)
        values.narrow(2, self.length, size).copy_(value)
        self.length = end
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def keep_first(self, batch: int) -> None:
        """Forget all samples but the first `batch` of them (no copy)."""
        if self._storage is not None:
            self._storage = self._storage[:, :batch]


class KVCache:
    """One `LayerCache` for each layer of a transformer.

    Args:
        num_layers: Number of layers.
        num_tokens: Number of tokens that each layer holds.
    """

    def __init__(self, num_layers: int, num_tokens: int) -> None:
        self.layers = [LayerCache(num_tokens) for _ in range(num_layers)]

    def keep_first(self, batch: int) -> None:
        """Forget all samples but the first `batch` of them (no copy)."""
        for layer in self.layers:
            layer.keep_first(batch)
