from __future__ import annotations

import pytest
import torch

from hiergen.convert.state_dicts import check_settings, count_of, fill_model, shape_of, unwrap_state_dict


def test_containers_and_wrapper_prefixes() -> None:
    weight = torch.ones(2)
    for name in ("a.b", "module.a.b", "_orig_mod.a.b", "module._orig_mod.a.b", "_orig_mod.module.a.b"):
        assert list(unwrap_state_dict({name: weight}, containers=())) == ["a.b"]
    checkpoint = {"model": {"x": weight}, "ema": {"y": weight}, "step": 3}
    assert list(unwrap_state_dict(checkpoint, containers=("ema", "model"))) == ["y"]
    # A parameter may be called like a container.
    assert list(unwrap_state_dict({"model": weight}, containers=("model",))) == ["model"]
    with pytest.raises(ValueError, match="entry 'step' of the state dict is a int, expected a tensor"):
        unwrap_state_dict({"w": weight, "step": 3}, containers=("model",))


def test_fill_copies_and_keeps_the_dtype() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(2, 3)
    values = {"weight": torch.randn(2, 3, dtype=torch.float64).T, "bias": torch.zeros(3, dtype=torch.float64)}
    fill_model(model, values)
    assert torch.equal(model.weight, values["weight"])
    assert model.weight.is_contiguous()
    assert model.weight.requires_grad
    values["bias"].add_(1)
    assert float(model.bias.detach().sum()) == 0


def test_what_does_not_fit_is_named() -> None:
    model = torch.nn.Linear(2, 3)
    good = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"missing 'their\.weight', unexpected 'extra'"):
        fill_model(model, {"bias": good["bias"], "extra": good["bias"]}, names={"weight": "their.weight"})
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\), expected \(3, 2\)"):
        fill_model(model, {**good, "weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"unexpected 'e0', .* 'e7' and 2 more"):
        fill_model(model, {**good, **{f"e{index}": good["bias"] for index in range(10)}})


def test_unknown_settings_are_named() -> None:
    check_settings({"in_features": 1}, torch.nn.Linear)
    with pytest.raises(ValueError, match="config entry 'width' is no setting of Linear; known are in_features"):
        check_settings({"width": 1}, torch.nn.Linear)


def test_sizes_are_read_off_the_tensors() -> None:
    tensors = {
        "a.0.weight": torch.ones(2, 3),
        "a.2.bias": torch.ones(2),
        "a.10": torch.ones(1),
        "ab.11.x": torch.ones(1),
    }
    assert shape_of(tensors, "a.0.weight", 2) == (2, 3)
    # A gap counts, so that what is missing is named when the model is filled.
    assert count_of(tensors, "a") == 11
    assert count_of(tensors, "b", at_least=0) == 0
    with pytest.raises(ValueError, match=r"the state dict lacks tensor 'a\.1\.weight'"):
        shape_of(tensors, "a.1.weight", 2)
    with pytest.raises(ValueError, match=r"tensor 'a\.2\.bias' has shape \(2,\), expected 2 dimensions"):
        shape_of(tensors, "a.2.bias", 2)
    with pytest.raises(ValueError, match=r"the state dict lacks tensors 'b\.0' and following"):
        count_of(tensors, "b")
