from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hiergen.benchmarks.measuring.work import bound_seconds, measure_machine, measure_work


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_products_are_counted_by_hand(mode) -> None:
    x, weight, bias = torch.ones(3, 5), torch.ones(7, 5), torch.ones(7)
    with mode():
        work = measure_work(lambda: F.gelu(F.linear(x, weight, bias)) + 1)
    assert work == {"flops": 2 * 3 * 5 * 7, "bytes": 4 * (15 + 35 + 7 + 21)}


def test_attention_and_the_backward_pass_are_counted() -> None:
    q = torch.ones(1, 2, 6, 8, requires_grad=True)
    forward = measure_work(lambda: F.scaled_dot_product_attention(q, q, q))
    both = measure_work(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert forward["flops"] == 4 * 2 * 6 * 6 * 8
    assert both["flops"] > 3 * forward["flops"]
    # An operand that repeats itself is read once.
    one = torch.ones(4, 1)
    assert measure_work(lambda: one.expand(4, 1000) @ torch.ones(1000, 1))["bytes"] == 4 * (4 + 1000 + 4)


def test_the_machine_has_rates_and_the_bound_is_the_slower_of_the_two() -> None:
    machine = measure_machine(torch.device("cpu"), megabytes=1, seconds=0.001)
    assert set(machine["flops_per_s"]) == {"float32", "bfloat16"}
    assert min(machine["bytes_per_s"], *machine["flops_per_s"].values()) > 1e6
    by_hand = {"flops_per_s": {"float32": 10.0, "bfloat16": 20.0}, "bytes_per_s": 5.0}
    assert bound_seconds({"flops": 40, "bytes": 1}, by_hand, "float32") == 4
    assert bound_seconds({"flops": 40, "bytes": 1}, by_hand, "float16") == 2
    assert bound_seconds({"flops": 40, "bytes": 100}, by_hand, "float32") == 20
