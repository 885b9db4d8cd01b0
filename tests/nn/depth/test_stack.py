"""Stacks of small blocks: every plan against its steps written out."""

import copy
import functools

import pytest
import torch
from torch import nn

from hiergen.nn.blocks.cached import CachedBlock
from hiergen.nn.blocks.transformer import EncoderBlock, PostNormBlock, TransformerBlock
from hiergen.nn.cache import KVCache
from hiergen.nn.depth.deltas import SharedBlock
from hiergen.nn.depth.plan import DepthPlan, Step, cycle, ladder, plain, sandwich, sequence
from hiergen.nn.depth.stack import BlockStack
from hiergen.nn.level_masks import BlockCausalMask
from hiergen.nn.positions import rotary_table

DIM, TOKENS = 16, 8
ROTARY = rotary_table(torch.arange(TOKENS, dtype=torch.float64)[:, None], DIM // 2)
LEVELS = (1, 1, 2, 4)
MASK = BlockCausalMask(LEVELS).dense("cpu")
PLANS = {
    "cycle": cycle(2, loops=2),
    "cycle with a rank": cycle(2, loops=2, rank=4),
    "injected": cycle(2, loops=3, inject=True),
    "sandwich": sandwich(1, 1, 1, loops=2),
    "ladder": ladder(3),
    "ladder at the end": ladder(3, last=1),
    "a ladder of loops": cycle(2, loops=2, rank=4, lag=1),
    "plain behind a ladder": DepthPlan((Step(0, lag=1), Step(1), Step(2, lag=1), Step(1), Step(0, lag=1, inject=True))),
    "projected": sequence(2, loops=2, project=True),
}


def make(plan: DepthPlan, *, shake: bool = True) -> BlockStack:
    torch.manual_seed(0)
    blocks = [CachedBlock(DIM, 2, 32) for _ in range(plan.num_blocks)]
    stack = BlockStack(blocks, plan.to_json(), dim=DIM)
    if shake:
        for name, parameter in stack.named_parameters():
            if "deltas" in name or "norm" in name:
                parameter.data.add_(0.2 * torch.randn_like(parameter))
    return stack.double()


def tokens() -> torch.Tensor:
    return torch.randn(2, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_plain_stack_is_a_list_of_blocks() -> None:
    plan = plain(3)
    stack, x = make(plan), tokens()
    listed = make(plan)
    bare = nn.ModuleList(listed.unwrapped)
    assert list(stack.state_dict()) == list(bare.state_dict())
    expected = x
    for block in bare:
        expected = block(expected, ROTARY, mask=MASK)
    found = stack(x, ROTARY, mask=MASK)
    assert torch.equal(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(stack.parameters(), bare.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_new_difference_changes_nothing() -> None:
    relaxed, x = make(cycle(2, loops=2, rank=4), shake=False), tokens()
    recursive = make(cycle(2, loops=2), shake=False)
    for ours, theirs in zip(relaxed.unwrapped, recursive.unwrapped, strict=True):
        theirs.load_state_dict(ours.state_dict())
    assert torch.equal(relaxed(x, ROTARY), recursive(x, ROTARY))
    assert all(isinstance(block, SharedBlock) for block in relaxed)
    assert "0.deltas.0.down.attention.qkv.weight" in relaxed.state_dict()
    assert {tuple(relaxed[0].deltas["0"].up.get_parameter("ffn.up.weight").shape)} == {(32, 4)}


def test_a_shared_block_is_copies_and_its_gradient_their_sum() -> None:
    recursive, x = make(cycle(2, loops=2)), tokens()
    copied = BlockStack([copy.deepcopy(recursive[step.block]) for step in recursive.plan.steps])
    found, expected = recursive(x, ROTARY, mask=MASK), copied(x, ROTARY, mask=MASK)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    found.square().sum().backward()
    expected.square().sum().backward()
    for block in range(2):
        pairs = zip(copied[block].parameters(), copied[block + 2].parameters(), strict=True)
        for shared, (first, second) in zip(recursive[block].parameters(), pairs, strict=True):
            torch.testing.assert_close(shared.grad, first.grad + second.grad)


def test_differences_are_added_to_matrices_and_vectors() -> None:
    relaxed, x = make(cycle(1, loops=2, rank=4)), tokens()
    shared = relaxed[0]
    steps = []
    for index in range(2):
        block, delta = copy.deepcopy(shared.block), shared.deltas[str(index)]
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                parameter.data += delta.up.get_parameter(name) @ delta.down.get_parameter(name)
            else:
                parameter.data += delta.vectors.get_parameter(name)
        steps.append(block)
    found = relaxed(x, ROTARY)
    torch.testing.assert_close(found, BlockStack(steps)(x, ROTARY), rtol=0, atol=1e-12)
    with relaxed.merged(), torch.no_grad():
        assert torch.equal(relaxed(x, ROTARY), found)
        shared.block.ffn.up.weight.add_(1)
        assert torch.equal(relaxed(x, ROTARY), found)
    assert not torch.equal(relaxed(x, ROTARY), found)


@pytest.mark.parametrize("plan", [ladder(1), ladder(3), ladder(3, last=1), ladder(3, last=2)])
def test_a_ladder_misses_the_branch_just_before(plan: DepthPlan) -> None:
    stack, x = make(plan), tokens()
    branches = [
        (step.lag, functools.partial(stack[step.block], only=only))
        for step in plan.steps
        for only in ("attention", "ffn")
    ]
    # streams[j] is the stream behind branch j.
    streams = [x]
    for j, (lag, branch) in enumerate(branches):
        streams.append(streams[-1] + branch(streams[max(j - lag, 0)], ROTARY, mask=MASK))
    torch.testing.assert_close(stack(x, ROTARY, mask=MASK), streams[-1], rtol=0, atol=1e-12)
    whole = BlockStack(stack.unwrapped)(x, ROTARY, mask=MASK)
    assert (whole - streams[-1]).abs().max() > 1e-3


def test_a_loop_gets_its_input_again() -> None:
    stack, x = make(cycle(2, loops=2, inject=True)), tokens()
    first, second = stack
    once = second(first(x, ROTARY), ROTARY)
    torch.testing.assert_close(stack(x, ROTARY), second(first(once + x, ROTARY), ROTARY), rtol=0, atol=1e-12)


def test_a_projection_follows_its_step() -> None:
    stack, x = make(sequence(1, loops=2, project=True)), tokens()
    shared = stack[0]
    for index in range(2):
        projection = shared.projections[str(index)]
        projection.coefficients.data = torch.tensor([0.5 + index, 2.0], dtype=torch.float64)
    expected = x
    for index in range(2):
        y = shared.block(expected, ROTARY)
        p = shared.projections[str(index)]
        expected = p.coefficients[0] * y + p.coefficients[1] * p.mlp(p.norm(y))
    torch.testing.assert_close(stack(x, ROTARY), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_a_cache_per_step_gives_what_the_whole_sequence_gives(name: str) -> None:
    stack, x = make(PLANS[name]), tokens()
    whole = stack(x, ROTARY, mask=MASK)
    cache, start, parts = KVCache(stack.num_steps, TOKENS), 0, []
    with torch.no_grad(), stack.merged():
        for size in LEVELS:
            end = start + size
            parts.append(stack(x[:, start:end], ROTARY[:, start:end], caches=cache.layers))
            start = end
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PLANS)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        stack, calls = make(PLANS[name]), []

        def recompute(part, *inputs, calls=calls):
            calls.append(part)
            return torch.utils.checkpoint.checkpoint(part, *inputs, use_reentrant=False)

        stack.gradient_checkpointing, stack._gradient_checkpointing_func = checkpointed, recompute
        stack(tokens(), ROTARY, mask=MASK).square().sum().backward()
        assert len(calls) >= checkpointed * stack.num_steps
        gradients.append([parameter.grad for parameter in stack.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for plain_gradient, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain_gradient, rtol=1e-9, atol=1e-12)


def test_slices_keep_groups_apart_and_are_the_same_every_time() -> None:
    torch.manual_seed(0)
    plan = sequence(1, loops=2, groups=(4, 2))
    stack = BlockStack([TransformerBlock(DIM, 2)], plan.to_json(), dim=DIM, num_tokens=TOKENS).double().eval()
    x = tokens()
    assert torch.equal(stack(x), stack(x))
    shared = stack[0]
    assert shared.slices["0"].order is None
    assert not torch.equal(shared.slices["1"].order, torch.arange(TOKENS))
    assert not torch.equal(stack(x), BlockStack([shared.block, shared.block])(x))


@pytest.mark.parametrize(
    ("blocks", "plan", "num_tokens", "message"),
    [
        ([PostNormBlock(DIM, 2, 32)], ladder(1), None, "step 0 of plan has lag 1, which PostNormBlock cannot run with"),
        ([CachedBlock(DIM, 2, 32)], sequence(1, loops=1, groups=(2,)), 8, "step 0 of plan has 2 groups, expected 1"),
        ([TransformerBlock(DIM, 2)], sequence(1, loops=1, groups=(2,)), None, "step 0 of plan has 2 groups"),
        ([TransformerBlock(DIM, 2)], sequence(1, loops=1, groups=(3,)), 8, "groups is 3, expected a divisor of the 8"),
        ([EncoderBlock(DIM, 2)], plain(2), None, "plan uses 2 blocks, the stack has 1"),
    ],
)
def test_stacks_refuse_plans_that_do_not_fit(blocks, plan: DepthPlan, num_tokens, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockStack(blocks, plan.to_json(), dim=DIM, num_tokens=num_tokens)
