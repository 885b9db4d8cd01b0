from __future__ import annotations

import pytest
import torch

from hiergen.nn.cache import KVCache, LayerCache


def test_append_returns_all_groups_so_far_in_the_dtype_of_the_first() -> None:
    cache = LayerCache(6)
    groups = [torch.randn(2, 2, 3, size, 4, dtype=torch.float16) for size in (1, 2, 3)]
    for count, (key, value) in enumerate(groups, start=1):
        keys, values = cache.append(key, value)
        assert torch.equal(keys, torch.cat([group[0] for group in groups[:count]], dim=2))
        assert torch.equal(values, torch.cat([group[1] for group in groups[:count]], dim=2))
    assert cache.length == 6
    assert keys.dtype == torch.float16


def test_storage_is_allocated_once() -> None:
    cache = LayerCache(4)
    addresses = {cache.append(*torch.randn(2, 1, 1, 1, 2))[0].data_ptr() for _ in range(4)}
    assert len(addresses) == 1


def test_keep_first_drops_samples() -> None:
    cache = KVCache(2, 4)
    cache.keep_first(1)
    first, second = torch.randn(2, 4, 1, 2, 2), torch.randn(2, 2, 1, 1, 2)
    for layer in cache.layers:
        layer.append(*first)
    cache.keep_first(2)
    for layer in cache.layers:
        keys, values = layer.append(*second)
        assert torch.equal(keys, torch.cat((first[0, :2], second[0]), dim=2))
        assert torch.equal(values, torch.cat((first[1, :2], second[1]), dim=2))


def test_errors() -> None:
    cache = LayerCache(3)
    cache.append(*torch.randn(2, 2, 1, 2, 2))
    with pytest.raises(ValueError, match="holds 3 tokens, a group of 2 would end at 4"):
        cache.append(*torch.randn(2, 2, 1, 2, 2))
    with pytest.raises(ValueError, match="holds a batch of 2, got 4"):
        cache.append(*torch.randn(2, 4, 1, 1, 2))
