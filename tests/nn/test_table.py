from __future__ import annotations

import pytest
import torch

from hiergen.nn.constants import Table


def test_table_moves_but_is_not_cast() -> None:
    table = Table(torch.tensor([1 / 3]))
    module = torch.nn.ModuleDict({"table": table, "linear": torch.nn.Linear(1, 1)})
    module.to(torch.bfloat16)
    assert module["linear"].weight.dtype == torch.bfloat16
    assert table().dtype == torch.float32
    assert float(table()) == pytest.approx(1 / 3, rel=1e-7)
    assert list(table.state_dict()) == ["value"]
    assert module.to("meta")["table"]().device.type == "meta"
