from __future__ import annotations

import pytest
import torch
import toy

from hiergen.training.loop import fit
from hiergen.training.reporting import throughput
from hiergen.training.reporting.throughput import StepFlops, measure_peak

#: Of the toy on one sample: 4 x 8 and 8 x 1 forward and their weights' gradients, and the gradient of the 8 activations.
TOY = 2 * (4 * 8 + 8 * 1) * 2 + 2 * 8
#: The critic's 1 x 1 in the toy's loss (forward, and back to its input) and in its own (forward, and its weight's gradient).
CRITIC = 2 * 2 + 2 * 2


def test_operations_are_counted_once_for_each_set_of_players() -> None:
    flops = StepFlops()
    matrix = torch.ones(3, 5)
    for players, runs in ((("a",), True), (("a",), False), (("a", "b"), True)):
        with flops.count(players):
            if runs:
                matrix @ matrix.T
    # The second step ran nothing, and is remembered.
    assert flops.read() == 3 * (2 * 3 * 3 * 5)
    assert flops.read() == 0


def test_mfu_is_logged_where_the_peak_is_known_and_changes_nothing(tmp_path) -> None:
    plain = fit(toy.toy_run(str(tmp_path / "plain"))).log
    given = fit(toy.toy_run(str(tmp_path / "given"), peak_tflops=1e-6, accumulation=2)).log
    measured = fit(toy.toy_run(str(tmp_path / "measured"), peak_tflops="measure")).log
    assert "mfu" not in plain[-1]
    assert 0 < measured[-1]["mfu"] < 1
    for line in given:
        seconds = 8 / line["samples_per_second"]
        assert line["tflops_per_second"] == pytest.approx(8 * (TOY + CRITIC) / seconds / 1e12)
        assert line["mfu"] == pytest.approx(line["tflops_per_second"] / 1e-6)
    # The step that is counted is the step that is taken.
    assert [line["toy/loss"] for line in measured] == [line["toy/loss"] for line in plain]
    with pytest.raises(ValueError, match=r"peak_tflops is 0\.0, expected above 0 or 'measure' or None"):
        toy.toy_run("x", peak_tflops=0.0)


def test_a_peak_is_that_of_matrix_products() -> None:
    peak = measure_peak(torch.device("cpu"), torch.float32, seconds=0.02)
    assert 1e-4 < peak < 100


def test_a_peak_is_measured_on_numbers_that_differ(monkeypatch) -> None:
    """A product of ones keeps most bits still, and a GPU that draws less power for it is faster than any model sees it."""
    operands: list[torch.Tensor] = []
    monkeypatch.setattr(throughput, "linear", lambda *both: (operands.extend(both), both[0] @ both[1].T)[1])
    for _ in range(2):
        measure_peak(torch.device("cpu"), torch.float32, seconds=0.0)
    assert all(len(x[:8].unique()) > 1000 for x in operands)
    assert torch.equal(operands[0], operands[-2])
    assert not torch.equal(operands[0], operands[1])
