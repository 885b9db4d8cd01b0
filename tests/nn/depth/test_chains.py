import pytest
import torch

from hiergen.kernels.attention import attention
from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.cache import KVCache
from hiergen.nn.depth.chains import ChainAttention, ChainBlock, ChainLinear, ChainNorm, chain_ends
from hiergen.nn.depth.plan import cycle
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import rotary_table

DIM, HEADS, TOKENS = 32, 4, 6
ROTARY = rotary_table(torch.arange(TOKENS, dtype=torch.float64)[:, None], DIM // HEADS)
LEVELS = (1, 2, 3)
MASK = BlockCausalMask(LEVELS).dense("cpu")


def block(chains=(2, 2), *, share_kv: bool = False) -> ChainBlock:
    torch.manual_seed(0)
    made = ChainBlock(DIM, chains, 48, share_kv=share_kv).double()
    for norm in (made.attention_norm, made.ffn_norm):
        norm.weight.data.add_(0.3 * torch.randn_like(norm.weight))
    return made


def tokens() -> torch.Tensor:
    return torch.randn(2, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("chains", "fraction"), [((1,), 1), ((2, 2), 0.75), ((1, 1, 1, 1), 0.625), ((1, 3), 13 / 16)])
def test_a_chain_linear_is_a_masked_dense_one(chains, fraction: float) -> None:
    torch.manual_seed(0)
    layer = ChainLinear(16, 8, chains, parts=3).double()
    assert (layer.weight != 0).sum() == fraction * layer.weight.numel()
    x = torch.randn(5, 16, dtype=torch.float64)
    by_chain = []
    for part in layer.weight.detach().unflatten(0, (3, 8)):
        start = 0
        for out_end, in_end in zip(layer.outs, layer.ins, strict=True):
            by_chain.append(x[:, :in_end] @ part[start:out_end, :in_end].T)
            start = out_end
    torch.testing.assert_close(layer(x), torch.cat(by_chain, dim=-1), rtol=0, atol=1e-12)
    for out_end, in_end in zip(layer.outs, layer.ins, strict=True):
        narrow = layer(x)[:, : 3 * 8].unflatten(-1, (3, 8))[..., :out_end].flatten(1)
        torch.testing.assert_close(layer(x[:, :in_end]), narrow, rtol=0, atol=1e-12)
    layer.weight.data.fill_(1)
    layer(x).sum().backward()
    layer.clear()
    assert torch.equal(layer.weight != 0, layer.weight.grad != 0)


def test_published_networks_have_their_numbers_of_parameters() -> None:
    """An MLP of chains between dense first and last layers, as on CIFAR-10."""
    published = {(4, 4, 4, 4): 3_263_754, (8, 8): 3_443_978, (4, 12): 3_534_090, (4, 4, 8): 3_353_866}
    for chains, expected in published.items():
        count = 3072 * 768 + 768 + 256 * 10 + 10
        for width, out in ((768, 1024), (1024, 512), (512, 256)):
            count += int((ChainLinear(width, out, chains)._constants.on(torch.device("cpu"))["mask"]).sum())
        assert count == expected


def test_one_chain_is_the_block() -> None:
    chained, plain = block((4,)), CachedBlock(DIM, HEADS, 48).double()
    plain.load_state_dict(chained.state_dict())
    x = tokens()
    torch.testing.assert_close(chained(x, ROTARY, mask=MASK), plain(x, ROTARY, mask=MASK), rtol=0, atol=1e-12)


@pytest.mark.parametrize("share_kv", [False, True])
@pytest.mark.parametrize("chains", [(2, 2), (1, 1, 2), (1, 3)])
def test_first_chains_know_nothing_of_later_ones(chains, share_kv: bool) -> None:
    made, x = block(chains, share_kv=share_kv), tokens().requires_grad_()
    whole = made(x, ROTARY, mask=MASK)
    for end in chain_ends(chains, DIM):
        narrow = made(x[..., :end], ROTARY, mask=MASK)
        torch.testing.assert_close(narrow, whole[..., :end], rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad(whole[..., :end].sum(), x, retain_graph=True)
        assert not gradient[..., end:].any()
    first = chain_ends(chains, DIM)[0]
    before = whole[..., :first].detach().clone()
    for layer in made.modules():
        if isinstance(layer, ChainLinear):
            layer.weight.data.unflatten(0, (layer.parts, -1))[:, layer.outs[0] :] += 1
    assert torch.equal(made(x, ROTARY, mask=MASK)[..., :first], before)


def test_shared_keys_are_tiled_and_not_grouped() -> None:
    torch.manual_seed(0)
    layer, x = ChainAttention(DIM, (2, 2), share_kv=True).double(), tokens()
    zeros = torch.stack((torch.ones(TOKENS, 4), torch.zeros(TOKENS, 4))).double()  # no rotation
    query = layer.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
    both = layer.key_value(x[..., : DIM // 2]).unflatten(-1, (2, 2, -1))
    heads = [
        attention(query[:, [j]], both[:, :, 0, [j % 2]].transpose(1, 2), both[:, :, 1, [j % 2]].transpose(1, 2))
        for j in range(HEADS)
    ]
    expected = layer.out(torch.cat(heads, dim=1).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x, zeros), expected, rtol=0, atol=1e-12)


def run(made: ChainBlock, numbers: list[int]) -> list[torch.Tensor]:
    """Return the outputs of groups that run with some chains each, through a cache."""
    cache, x, start, found = KVCache(1, TOKENS), tokens(), 0, []
    ends = made.attention_norm.ends
    for size, number in zip(LEVELS, numbers, strict=True):
        group = x[:, start : start + size, : ends[number - 1]]
        found.append(made(group, ROTARY[:, start : start + size], cache=cache.layers[0]))
        start += size
    return found


def test_groups_with_fewer_chains_than_before_read_the_first_ones() -> None:
    for share_kv, numbers in ((False, [2, 1, 1]), (False, [2, 2, 1]), (True, [1, 2, 1]), (True, [1, 1, 2])):
        made, start = block(share_kv=share_kv), 0
        whole = made(tokens(), ROTARY, mask=MASK)
        for found in run(made, numbers):
            expected = whole[:, start : start + found.shape[1], : found.shape[2]]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
            start += found.shape[1]
    with pytest.raises(ValueError, match="the cache holds 2 heads, got 4"):
        run(block(), [1, 2, 2])


def test_chains_run_by_a_plan() -> None:
    torch.manual_seed(0)
    stack = BlockStack([ChainBlock(DIM, (2, 2), 48)], cycle(1, loops=2, rank=2, lag=1).to_json(), dim=DIM).double()
    for parameter in stack.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = tokens()
    whole = stack(x, ROTARY, mask=MASK)
    torch.testing.assert_close(stack(x[..., : DIM // 2], ROTARY, mask=MASK), whole[..., : DIM // 2], rtol=0, atol=1e-12)


def test_a_norm_is_of_each_chain_alone() -> None:
    norm, x = ChainNorm(8, (1, 3)), torch.randn(3, 8)
    expected = torch.cat(
        [part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() for part in x.split((2, 6), -1)], -1
    )
    torch.testing.assert_close(norm(x), expected)
    torch.testing.assert_close(norm(x[:, :2]), expected[:, :2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChainLinear(9, 8, (2, 2)), r"chains is \[2, 2\], which cannot share out 9 channels"),
        (lambda: ChainLinear(8, 8, ()), r"chains is \[\], expected numbers of heads"),
        (lambda: ChainLinear(8, 8, (4, 0)), r"chains is \[4, 0\], expected numbers of heads"),
        (lambda: ChainAttention(12, (2, 2)), r"dim is 12, expected a multiple of 2 \* sum\(chains\) = 8"),
    ],
)
def test_chains_refuse_sizes_that_cannot_be_shared_out(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
