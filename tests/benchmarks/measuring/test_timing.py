from __future__ import annotations

import torch
from rich.table import Table

from hiergen.benchmarks.measuring.timing import describe_machine, show, take_turns


def test_calls_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    calls = {"first": lambda: order.append("first"), "second": lambda: order.append("second")}
    seconds = take_turns(calls, repeats=2, device=torch.device("cpu"))
    assert order == ["first", "second"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"first": 2, "second": 2}
    assert all(value >= 0 for values in seconds.values() for value in values)


def test_the_machine_is_described() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"].endswith(" CPU")
    assert machine["torch"] == torch.__version__


def test_a_table_is_whole_where_there_is_no_terminal(capsys) -> None:
    table = Table(title="times")
    cells = [f"case {number} of a benchmark" for number in range(8)]
    for cell in cells:
        table.add_column(cell, no_wrap=True)
    table.add_row(*cells)
    show(table)
    assert sum(all(cell in line for cell in cells) for line in capsys.readouterr().out.splitlines()) == 2
