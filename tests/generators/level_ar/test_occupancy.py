import itertools

import pytest

from hiergen.generators.level_ar.occupancy import simulate


@pytest.mark.parametrize("exit_at", [1, 2, 3, 4])
def test_exits_after_one_loop_for_all_save_exactly_the_others(exit_at: int) -> None:
    found = simulate([[exit_at] * 5] * 12, batch_size=4, num_loops=4)
    assert found.throughput(4, 4) == pytest.approx(4 / exit_at)
    assert found.ticks == 3 * 5 * exit_at


def test_slots_are_never_more_than_the_batch_and_nobody_starves() -> None:
    exits = [[1 + (7 * i + 3 * j) % 3 for j in range(1 + i % 5)] for i in range(23)]
    for batching in ("depth", "sequence", "static"):
        found = simulate(exits, batch_size=4, num_loops=3, batching=batching)
        assert found.most_busy == 4
        assert min(found.finished) > 0
        assert max(found.finished) == found.ticks
        assert found.tokens == sum(map(len, exits))
        # Who comes first starts first.
        starts = [
            end - (sum(e) if batching == "depth" else 3 * len(e)) for end, e in zip(found.finished, exits, strict=True)
        ]
        assert all(first <= second for first, second in itertools.pairwise(starts))
    assert simulate(exits, batch_size=4, num_loops=3).busy == sum(map(sum, exits))


def test_a_hand_worked_batch() -> None:
    exits = [[2], [1, 1], [2]]
    assert simulate(exits, batch_size=2, num_loops=2).finished == (2, 2, 4)
    assert simulate(exits, batch_size=2, num_loops=2, batching="sequence").finished == (2, 4, 4)
    assert simulate(exits, batch_size=2, num_loops=2, batching="static").finished == (2, 4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": [[3]]}, "exits holds 3, expected 1 to 2"),
        ({"exits": []}, "exits holds no sequence or an empty one"),
        ({"exits": [[]]}, "exits holds no sequence or an empty one"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"batching": "width"}, "batching is 'width', expected one of"),
    ],
)
def test_simulations_refuse_what_cannot_be(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate(**{"exits": [[1]], "batch_size": 1, "num_loops": 2, **options})
