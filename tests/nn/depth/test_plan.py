import pytest

from hiergen.nn.depth.plan import (
    DepthPlan,
    Step,
    cycle,
    ladder,
    part_plan,
    plain,
    plan_from_json,
    sandwich,
    sequence,
    stepwise_layers,
)


def blocks_of(plan: DepthPlan) -> list[int]:
    return [step.block for step in plan.steps]


def test_presets_list_their_steps() -> None:
    assert blocks_of(plain(4)) == [0, 1, 2, 3]
    assert blocks_of(cycle(2, loops=2)) == [0, 1, 0, 1]
    assert cycle(2, loops=2).exits == (1, 3)
    assert blocks_of(sandwich(1, 1, 1, loops=3)) == [0, 1, 1, 1, 2]
    assert sandwich(1, 2, 1, loops=2, rank=4).steps[1:5] == tuple(
        Step(block, rank=4, own_vectors=True) for block in (1, 2, 1, 2)
    )
    sliced = sequence(2, loops=2, project=True, groups=(4, 1))
    assert [(step.block, step.groups, step.project) for step in sliced.steps] == [
        (0, 4, True),
        (0, 1, True),
        (1, 4, True),
        (1, 1, True),
    ]
    assert [step.lag for step in ladder(4).steps] == [1, 1, 1, 1]
    assert [step.lag for step in ladder(4, last=2).steps] == [0, 0, 1, 1]
    assert [step.inject for step in cycle(2, loops=3, inject=True).steps] == [False, False, True, False, True, False]


def test_a_plan_is_plain_json_and_back() -> None:
    plan = cycle(2, loops=2, rank=8, lag=1)
    assert plan_from_json(plan.to_json(), 2) == plan
    assert plain(2).to_json() == [{"block": 0}, {"block": 1}]
    assert plan_from_json(None, 3) == plain(3)
    assert plain(3).is_plain
    assert not ladder(3).is_plain


@pytest.mark.parametrize(
    ("depth", "blocks", "layers"),
    [
        (6, 3, "1 3 6"),
        (18, 9, "1 3 5 7 9 12 14 16 18"),
        (18, 6, "1 4 8 11 15 18"),
        (22, 11, "1 3 5 7 9 11 14 16 18 20 22"),
        (16, 8, "1 3 5 7 10 12 14 16"),
        (24, 12, "1 3 5 7 9 11 14 16 18 20 22 24"),
        (12, 6, "1 3 5 8 10 12"),
        (4, 2, "1 4"),
        (4, 1, "1"),
    ],
)
def test_stepwise_takes_the_published_layers(depth: int, blocks: int, layers: str) -> None:
    assert " ".join(str(layer + 1) for layer in stepwise_layers(depth, blocks)) == layers


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthPlan(()), r"plan uses the blocks \[\], expected 0 to"),
        (lambda: DepthPlan((Step(0), Step(2))), r"plan uses the blocks \[0, 2\], expected 0 to"),
        (lambda: DepthPlan((Step(0, inject=True),)), "step 0 of the plan injects, but is the first of block 0"),
        (lambda: Step(-1), "block is -1, expected at least 0"),
        (lambda: Step(0, lag=2), "lag is 2, expected 0 to 1"),
        (lambda: cycle(2, loops=0), "loops is 0, expected at least 1"),
        (lambda: cycle(0, loops=2), "num_blocks is 0, expected at least 1"),
        (lambda: sequence(2, loops=2, groups=(4,)), r"groups is \(4,\), expected 2 numbers"),
        (lambda: ladder(4, last=5), "last is 5, expected 0 to 4"),
        (lambda: plan_from_json([{"block": 0, "ranks": 2}], 1), "step 0 of plan has the unknown entry 'ranks'.*rank"),
        (lambda: plan_from_json([{"rank": 2}], 1), "step 0 of plan is .*expected a mapping with the entry 'block'"),
        (lambda: plan_from_json([{"block": 0}], 2, "plan of x"), "plan of x uses 1 blocks, the stack has 2"),
        (lambda: part_plan({"coder": []}, "encoder", "decoder"), "plan names the stack 'coder', expected 'decoder' or"),
    ],
)
def test_plans_refuse_what_they_cannot_be(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
