from __future__ import annotations

import copy
import itertools
import pickle

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hiergen.kernels import products
from hiergen.kernels.dispatch import plain_on_cpu
from hiergen.kernels.products import PackedWeight, linear
from hiergen.nn.blocks.layers import Linear
from hiergen.training.reporting.throughput import flop_counter


@pytest.fixture(autouse=True)
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are of the path of AMD's processors, on any: oneDNN computes the same everywhere."""
    monkeypatch.setattr(products, "is_amd", lambda: True)
    monkeypatch.setattr(products, "_has_memory", lambda: True)


def _inputs(*rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((*rows, 160), (192, 160), (192,))
    return tuple(torch.randn(shape, generator=rng).to(dtype) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [(64,), (2, 40), (300, 1)])
def test_products_agree_with_the_plain_layer_packed_or_not(rows, has_bias, dtype, tolerance) -> None:
    x, weight, bias = _inputs(*rows, dtype=dtype)
    exact = F.linear(x.double(), weight.double(), bias.double() if has_bias else None)
    packed = PackedWeight()
    for holder in (packed, packed, None):
        made = linear(x, weight, bias if has_bias else None, packed=holder)
        assert made.dtype == dtype
        assert float((made - exact).abs().max() / exact.abs().max()) < tolerance
    few = x.shape[:-1].numel() <= 128
    assert (packed._packed is not None) == (few and dtype in products.number_formats())


def test_bfloat16_is_left_to_pytorch_on_a_processor_without_instructions_for_it(monkeypatch) -> None:
    x, weight, bias = _inputs(64, dtype=torch.bfloat16)
    monkeypatch.setattr(products, "number_formats", lambda: (torch.float32,))
    packed = PackedWeight()
    assert torch.equal(linear(x, weight, bias, packed=packed), F.linear(x, weight, bias))
    assert packed._packed is None


def test_gradients_and_their_gradients_agree_with_the_plain_layer() -> None:
    x, weight, bias = _inputs(4, 40)
    x, weight = x.repeat(2, 1, 1).transpose(0, 1), nn.Parameter(weight)
    seen = []
    for plain in (False, True):
        inputs = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
        out = F.linear(*inputs) if plain else linear(*inputs)
        first = torch.autograd.grad(out.square().mean(), inputs, create_graph=True)
        seen.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)])
        is_ours = type(out.grad_fn).__name__ == "_LinearBackward"
        assert is_ours != plain
    for ours, theirs in zip(*seen, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < 1e-5


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *inputs: calls.append(1) or real(*inputs))
    for needs in itertools.product((False, True), repeat=3):
        inputs = [tensor.requires_grad_(need) for tensor, need in zip(_inputs(320), needs, strict=True)]
        calls.clear()
        out = linear(*inputs)
        if any(needs):
            out.sum().backward()
        assert len(calls) == 1 + needs[0] + needs[1]
        assert [tensor.grad is not None for tensor in inputs] == list(needs)


def test_a_weight_that_is_written_to_is_packed_anew() -> None:
    layer = Linear(160, 192)
    x = _inputs(64)[0]
    with torch.no_grad():
        before = layer(x)
        copied = layer.packed._packed
        assert copied is not None
        assert torch.equal(layer(x), before)
        assert layer.packed._packed is copied
        layer.weight.mul_(2)
        assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-5)
        assert layer.packed._packed is not copied
        # As adapters are merged: no version is counted.
        layer.weight.data += torch.randn(192, 2) @ torch.randn(2, 160)
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-4)
        layer.load_state_dict(nn.Linear(160, 192).state_dict())
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5)
        layer.weight = nn.Parameter(torch.zeros(192, 160))
        assert torch.equal(layer(x), layer.bias.expand(64, -1))


def test_training_forgets_the_copy_and_copies_of_a_layer_have_none() -> None:
    layer = Linear(160, 192)
    x = _inputs(64)[0]
    with torch.no_grad():
        layer(x)
    assert layer.packed._packed is not None
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.packed._packed is None
        assert torch.allclose(twin(x), layer(x), atol=1e-5)
    layer(x).sum().backward()
    assert layer.packed._packed is None


@pytest.mark.parametrize("reason", ["forbidden", "no memory"])
def test_no_copy_is_made_where_it_is_forbidden_or_memory_is_short(monkeypatch, reason) -> None:
    if reason == "no memory":
        monkeypatch.setattr(products, "_has_memory", lambda: False)
    else:
        monkeypatch.setattr(products, "_packs", True)
        products.set_packing(False)
    layer = Linear(160, 192)
    with torch.inference_mode():
        layer(_inputs(64)[0])
    assert layer.packed._packed is None


def test_weights_made_in_inference_mode_are_never_copied() -> None:
    with torch.inference_mode():
        layer = Linear(160, 192)
        layer(_inputs(64)[0])
    assert layer.packed._packed is None


def test_what_onednn_does_not_take_is_the_plain_layer() -> None:
    x, weight, bias = _inputs(320)
    calls = {
        "small": (x[:2], weight, bias),
        "wide": (x.double(), weight.double(), bias.double()),
        "a vector": (x[0], weight, bias),
        "a subclass": (x, _Quantized(weight), bias),
    }
    for name, inputs in calls.items():
        inputs = tuple(t.requires_grad_() if type(t) is torch.Tensor else t for t in inputs)
        assert "_LinearBackward" not in str(linear(*inputs).grad_fn), name
    with plain_on_cpu():
        assert "_LinearBackward" not in str(linear(x, nn.Parameter(weight), bias).grad_fn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, nn.Parameter(weight), bias).dtype == torch.bfloat16
    assert "_LinearBackward" in str(linear(x, nn.Parameter(weight), bias).grad_fn)


class _Quantized(torch.Tensor):
    pass


def test_compiled_layers_hold_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # A graph cannot hold checks of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    layer, x = Linear(160, 192), _inputs(320)[0]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.linear(x, layer.weight, layer.bias))


def test_operations_are_counted_as_those_of_the_plain_layer() -> None:
    x, weight, bias = _inputs(2, 160)
    counts = []
    for plain in (False, True):
        with flop_counter() as counter:
            (F.linear if plain else linear)(x.clone().requires_grad_(), nn.Parameter(weight), bias).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 320 * 160 * 192


def test_processors_without_slow_float32_products_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "is_amd", lambda: False)
    x, weight, bias = _inputs(320)
    assert "_LinearBackward" not in str(linear(x, nn.Parameter(weight), bias).grad_fn)
