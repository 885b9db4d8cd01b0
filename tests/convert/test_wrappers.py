from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.convert import cascade, flow_transformer, ldm_vae, level_ar, masked, restok, shape_vae, var
from hiergen.convert.state_dicts import unwrap_state_dict

ANCHOR = "blocks.0.attn.weight"
TRAINED = {ANCHOR: torch.tensor([1.0, 2.0]), "blocks.0.mlp_in.bias": torch.tensor([3.0]), "norm.weight": torch.ones(2)}
AVERAGE = {name: value + 10 for name, value in TRAINED.items()}

State = Mapping[str, Any]


def prefixed(state: State, prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def inside(state: State, wrapper: str) -> dict[str, Any]:
    """Return a state dict of which each block, and in it the attention, is wrapped."""
    return {
        name.replace("blocks.0.", f"blocks.0.{wrapper}").replace("attn.", f"attn.{wrapper}"): value
        for name, value in state.items()
    }


NAMES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.", "_forward_module.")
#: A checkpoint made of one state dict, by what made it.
MADE: dict[str, Callable[[State], State]] = {
    "as it is": dict,
    **{f"{name} before": lambda state, name=name: prefixed(state, name) for name in NAMES},
    **{f"{name} inside": lambda state, name=name: inside(state, name) for name in NAMES},
    "two nested": lambda state: prefixed(inside(state, "_orig_mod._checkpoint_wrapped_module."), "module._orig_mod."),
    "one repeated": lambda state: prefixed(
        inside(state, "_fsdp_wrapped_module._fsdp_wrapped_module."), "module.module."
    ),
    **{
        f"container {key}": lambda state, key=key: {key: state, "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}}
        for key in ("state_dict", "model_state_dict", "model", "module", "net", "network", "generator", "params", "app")
    },
    "containers in containers": lambda state: {"checkpoint": {"model": {"module": state}}, "args": None},
    "a list of models": lambda state: {"models": [state]},
    "Lightning": lambda state: {"state_dict": {**prefixed(state, "model."), "loss.weight": torch.ones(1)}, "epoch": 1},
    "Lightning, compiled": lambda state: {"state_dict": prefixed(inside(state, "_orig_mod."), "net._orig_mod.")},
    "Trainer": lambda state: prefixed(state, "model."),
    "AveragedModel": lambda state: {"n_averaged": torch.tensor(7), **prefixed(state, "module.")},
    "plain values beside it": lambda state: {**state, "epoch": 3, "note": "last"},
}


@pytest.mark.parametrize("kind", MADE)
def test_one_state_dict_is_found_whatever_wraps_it(kind: str) -> None:
    found = unwrap_state_dict(MADE[kind](TRAINED), anchor=ANCHOR)
    assert found.keys() == TRAINED.keys()
    assert all(torch.equal(value, TRAINED[name]) for name, value in found.items())


def _lit_ema() -> State:
    names = {name: name.replace(".", "") for name in TRAINED if name != "norm.weight"}
    average = {f"model_ema.{short}": AVERAGE[name] for name, short in names.items()}
    return {
        "state_dict": {
            **TRAINED,
            **average,
            "model_ema.decay": torch.tensor(0.9),
            "model_ema.num_updates": torch.tensor(3),
        }
    }


#: A checkpoint that holds the trained weights and their average, by what made it.
BOTH: dict[str, Callable[[], State]] = {
    **{
        f"container {key}": lambda key=key: {"model": TRAINED, key: AVERAGE}
        for key in (
            *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema", "averaged_model"),
            *("EMAModel", "ema_0.9999", "swa_model", "g_ema", "average", "emas", "weights_avg"),
        )
    },
    "params and params_ema": lambda: {"params": TRAINED, "params_ema": AVERAGE},
    "under one key": lambda: {"ema": {"decay": 0.9, "shadow": AVERAGE}, "model": TRAINED},
    "ema_model. beside online_model.": lambda: {
        **prefixed(TRAINED, "online_model."),
        **prefixed(AVERAGE, "ema_model."),
    },
    "both under ema": lambda: {
        "model": TRAINED,
        "ema": {**prefixed(TRAINED, "online_model."), **prefixed(AVERAGE, "ema_model."), "step": torch.tensor(1)},
    },
    "prefixes of Lightning": lambda: {"state_dict": {**prefixed(TRAINED, "net."), **prefixed(AVERAGE, "net_ema.")}},
    "prefix beside none": lambda: {**TRAINED, **prefixed(AVERAGE, "ema.module.")},
    "AveragedModel inside": lambda: {
        **prefixed(TRAINED, "net."),
        **prefixed(AVERAGE, "smooth.module."),
        "smooth.n_averaged": torch.tensor(3),
    },
    "Lightning's callback": lambda: {"state_dict": prefixed(TRAINED, "model."), "callbacks": {"EMA": {"w": AVERAGE}}},
}


@pytest.mark.parametrize("kind", BOTH)
def test_the_average_is_taken_and_it_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    found = unwrap_state_dict(BOTH[kind](), anchor=ANCHOR)
    assert found.keys() == AVERAGE.keys()
    assert all(torch.equal(value, AVERAGE[name]) for name, value in found.items())
    (line,) = caplog.messages
    assert line.startswith("averaged weights are taken, '")
    assert "not the trained ones, '" in line


def test_an_average_whose_names_lost_their_dots_is_matched_with_the_trained_weights() -> None:
    found = unwrap_state_dict(_lit_ema(), anchor=ANCHOR)
    assert found.keys() == AVERAGE.keys()
    # What is not trained is not averaged.
    assert torch.equal(found["norm.weight"], TRAINED["norm.weight"])
    assert torch.equal(found[ANCHOR], AVERAGE[ANCHOR])
    mmcv = {f"ema_{name.replace('.', '_')}": value for name, value in AVERAGE.items()}
    found = unwrap_state_dict({"state_dict": {**TRAINED, **mmcv}}, anchor=ANCHOR)
    assert all(torch.equal(value, AVERAGE[name]) for name, value in found.items())


def test_an_average_that_is_saved_as_the_model_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    # Lightning's WeightAveraging swaps them when it saves.
    found = unwrap_state_dict({"state_dict": AVERAGE, "current_model_state": TRAINED}, anchor=ANCHOR)
    assert torch.equal(found[ANCHOR], AVERAGE[ANCHOR])
    assert not caplog.messages


REFUSED: dict[str, tuple[State, str]] = {
    "empty": ({}, "lacks tensor 'blocks.0.attn.weight', after any prefix: it is empty"),
    "another model": (
        {"state_dict": {"conv.weight": torch.ones(1)}, "epoch": 3},
        r"lacks tensor 'blocks.0.attn.weight'.*it holds state_dict \(dictionary\), epoch \(int\)",
    ),
    "flattened": (
        {"blocks.0._fsdp_wrapped_module._flat_param": torch.ones(9)},
        "'blocks.0._flat_param', FSDP's flattened parameters",
    ),
    "no names": (
        {"decay": 0.9, "shadow_params": list(AVERAGE.values())},
        "list of tensors without names, 'shadow_params'",
    ),
    "no names beside the trained": (
        {"model": TRAINED, "ema": {"decay": 0.9, "shadow_params": list(AVERAGE.values())}},
        "without names, 'ema/shadow_params'.* pass the trained weights, 'model', alone",
    ),
    "two models": ({"a": TRAINED, "b": AVERAGE}, "holds 2 models with a tensor '.*', under 'a', 'b'"),
    "two averages": ({"ema_0.9": TRAINED, "ema_0.99": AVERAGE}, "2 models .* under 'ema_0.9', 'ema_0.99'"),
    "twice": ({**TRAINED, **prefixed(AVERAGE, "module.")}, "twice, once as 'module.blocks.0.attn.weight'"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_told_is_refused_with_what_is_there(kind: str) -> None:
    checkpoint, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        unwrap_state_dict(checkpoint, anchor=ANCHOR)


def test_copies_of_the_same_weights_are_one_model() -> None:
    assert unwrap_state_dict({"model": TRAINED, "state_dict": dict(TRAINED)}, anchor=ANCHOR).keys() == TRAINED.keys()


def _of(family: str) -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parent / f"test_{family}.py"))


def _families() -> dict[str, tuple[Any, Callable[[], dict[str, Tensor]], Any]]:
    return {
        "restok": (restok, lambda: _of("restok")["official"](), {"num_min_tokens": 2, "crop_size": 8}),
        "har": (level_ar, lambda: _of("level_ar")["official_weights"](7), {"n_head": 4}),
        "mar": (masked, lambda: _of("masked")["official_weights"](), {"encoder_heads": 4, "decoder_heads": 4}),
        "mar3d": (cascade, lambda: _of("cascade")["_official"]()[1], {"encoder_heads": 2, "decoder_heads": 2}),
        "flow": (flow_transformer, lambda: _of("flow_transformer")["official_state"](), {}),
        "ldm-vae": (ldm_vae, lambda: _of("ldm_vae")["official_state"](has_decoder_attention=True), {}),
        "var": (var, lambda: _of("var")["official_tokenizer"](), {"image_size": 16, "sides": [1, 2, 3, 4]}),
        "shape-vae": (
            shape_vae,
            lambda: _of("shape_vae")["official_weights"](_of("shape_vae")["LEARNED"], torch.float32),
            {"heads": 2},
        ),
    }


@pytest.mark.parametrize("family", _families())
def test_every_family_is_converted_from_wrapped_and_averaged_weights(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    converter, make, config = _families()[family]
    state = make()
    expected = converter.from_official(dict(state), config).state_dict()
    lists = sorted({name.split(".0.")[0] for name in state if ".0." in name})
    deep = {
        next(
            (
                name.replace(f"{x}.0.", f"{x}.0._orig_mod._checkpoint_wrapped_module.", 1)
                for x in lists
                if name.startswith(f"{x}.0.")
            ),
            name,
        ): value
        for name, value in state.items()
    }
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    for checkpoint in (
        deep,
        prefixed(deep, "_fsdp_wrapped_module."),
        {"state_dict": prefixed(deep, "model._orig_mod."), "epoch": 1, "callbacks": {}},
        {"model": zeros, "ema": prefixed(deep, "module.")},
        {**prefixed(zeros, "online_model."), **prefixed(state, "ema_model.")},
    ):
        found = converter.from_official(checkpoint, config).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert [line[:26] for line in caplog.messages] == ["averaged weights are taken"] * 2
    with pytest.raises(ValueError, match=r"lacks tensor .* it holds weights \(dictionary\)"):
        converter.from_official({"weights": {"conv.bias": torch.ones(1)}}, config)
