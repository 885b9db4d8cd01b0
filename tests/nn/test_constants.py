from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hiergen.nn.constants import Constants, Table


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.constants = Constants(
            table=torch.tensor([1.0, 2.0, 3.0], device="cpu"), mask=torch.tensor([True, False, True], device="cpu")
        )

    def forward(self, x: Tensor) -> Tensor:
        constants = self.constants.on(x.device)
        return (self.scale * constants["table"] * x)[constants["mask"]]


def test_constants_are_no_state_and_keep_their_dtype() -> None:
    model = Model().to(torch.bfloat16)
    assert list(model.state_dict()) == ["scale"]
    assert not list(model.buffers())
    assert model.constants.on(torch.device("cpu"))["table"].dtype == torch.float32


def test_constants_survive_the_meta_device_and_copies() -> None:
    with torch.device("meta"):
        model = Model()
    model.load_state_dict({"scale": torch.ones(3)}, assign=True)
    for each in (model, copy.deepcopy(model)):
        assert each(torch.ones(3)).tolist() == [1.0, 3.0]


def test_each_device_gets_one_copy_that_training_can_use() -> None:
    constants = Model().constants
    meta = torch.device("meta")
    with torch.inference_mode():
        first = constants.on(meta)
    assert first["table"].device == meta
    assert not first["table"].is_inference()
    assert constants.on(meta)["table"] is first["table"]
    assert constants.on(torch.device("cpu"))["table"].tolist() == [1.0, 2.0, 3.0]


def test_constants_made_elsewhere_than_on_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="constant 'table' is on meta, expected the CPU"):
        Constants(table=torch.ones(1, device="meta"))


def test_table_moves_but_is_not_cast() -> None:
    table = Table(torch.tensor([1 / 3]))
    module = torch.nn.ModuleDict({"table": table, "linear": torch.nn.Linear(1, 1)})
    module.to(torch.bfloat16)
    assert module["linear"].weight.dtype == torch.bfloat16
    assert table().dtype == torch.float32
    assert float(table()) == pytest.approx(1 / 3, rel=1e-7)
    assert list(table.state_dict()) == ["value"]
    assert module.to("meta")["table"]().device.type == "meta"
