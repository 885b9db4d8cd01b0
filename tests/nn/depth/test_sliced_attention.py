import pytest
import torch

from hiergen.kernels.attention import attention
from hiergen.nn.depth.sliced_attention import SlicedAttention


def heads(tokens: int = 12) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, tokens, 4, generator=rng, dtype=torch.float64) for _ in range(3)]


def test_one_group_is_full_attention() -> None:
    query, key, value = heads()
    rng = torch.Generator().manual_seed(0)
    for sliced in (SlicedAttention(12, 1), SlicedAttention(12, 1, rng=rng)):
        torch.testing.assert_close(sliced(query, key, value), attention(query, key, value))


def test_tokens_of_other_groups_have_no_gradient() -> None:
    query, key, value = (x.requires_grad_() for x in heads())
    sliced = SlicedAttention(12, 3, rng=torch.Generator().manual_seed(0))
    sliced(query, key, value)[:, :, 5].sum().backward()
    groups = sliced.order.view(3, 4)
    own = next(group for group in groups if 5 in group)
    reached = value.grad.abs().sum(dim=(0, 1, 3)) > 0
    assert sorted(own.tolist()) == reached.nonzero().flatten().tolist()


def test_the_permutation_groups_by_its_order_and_is_undone() -> None:
    inputs = heads()
    sliced = SlicedAttention(12, 3, rng=torch.Generator().manual_seed(0))
    permuted = SlicedAttention(12, 3)(*(x[:, :, sliced.order] for x in inputs))
    torch.testing.assert_close(sliced(*inputs)[:, :, sliced.order], permuted)
    again = SlicedAttention(12, 3, rng=torch.Generator().manual_seed(0))
    assert torch.equal(again.order, sliced.order)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the sequence has 8 tokens, sliced attention was built for 12"):
        SlicedAttention(12, 3)(*heads(8))
