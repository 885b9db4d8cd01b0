"""Every backend of dense and level-masked attention against the formula in float64: forward and backward, ragged sizes; who refuses what."""

from __future__ import annotations

import dataclasses
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.kernels import dense_backends, dispatch
from hiergen.kernels.attention import attention
from hiergen.kernels.dense_backends import BACKENDS, DenseRequest
from hiergen.kernels.spans import Spans
from hiergen.nn.level_masks import ScaleAttention, ScaleMask

#: Levels that end nowhere near a block's end, as rules of HAR, VAR and HieraTok; keys behind the last one that is seen.
LAYOUTS = {
    "causal": (Spans(((0, 1), (1, 2), (2, 5), (5, 70))), 70),
    "diagonal": (Spans(((0, 3), (3, 150)), ((0, 3), (3, 150))), 150),
    "reverse": (Spans(((0, 4), (4, 9)), ((0, 9), (4, 9))), 9),
    "cached": (Spans(((0, 2), (2, 7)), ((0, 20), (0, 25))), 31),
}


@dataclasses.dataclass
class BlockDiagonalMask:
    """Stand-in for the bias of xformers: query block i sees key block i."""

    q_lengths: list[int]
    kv_lengths: list[int]
    device: torch.device

    @classmethod
    def from_seqlens(cls, q_seqlen: list[int], kv_seqlen: list[int], *, device: torch.device) -> BlockDiagonalMask:
        return cls(q_seqlen, kv_seqlen, device)

    def mask(self) -> Tensor:
        index = [torch.arange(len(x)).repeat_interleave(torch.tensor(x)) for x in (self.q_lengths, self.kv_lengths)]
        return index[0][:, None] == index[1]


class Operator:
    """Stand-in for an operator of xformers that runs on CPUs in float32 and float64."""

    NAME = "standin"

    @staticmethod
    def not_supported_reasons(inputs: Any) -> list[str]:
        return [] if inputs.query.dtype in (torch.float32, torch.float64) else [f"dtype={inputs.query.dtype}"]


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is found as `xformers.ops.fmha`."""

    def memory_efficient_attention(q: Tensor, k: Tensor, v: Tensor, *, attn_bias: Any = None, scale: Any) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = None if attn_bias is None else attn_bias.mask()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)

    names = ["xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias"]
    modules: dict[str, Any] = {name: types.ModuleType(name) for name in names}
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    modules["xformers.ops"].fmha = modules["xformers.ops.fmha"]
    vars(modules["xformers.ops.fmha"]).update(
        ALL_FW_OPS=[Operator], ALL_BW_OPS=[Operator], Inputs=lambda **values: types.SimpleNamespace(**values)
    )
    modules["xformers.ops.fmha.attn_bias"].BlockDiagonalMask = BlockDiagonalMask
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    dense_backends._blocks.cache_clear()
    yield modules["xformers.ops.fmha"]
    dense_backends._blocks.cache_clear()


def draw(spans: Spans, num_keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    lengths = (spans.num_queries, num_keys, num_keys)
    return [torch.randn(2, 3, length, 8, generator=rng, dtype=torch.float64).to(dtype) for length in lengths]


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference", "grouped", "flex", "xformers"])
def test_every_backend_gives_the_formulas_numbers_and_gradients(backend: str, layout: str) -> None:
    spans, num_keys = LAYOUTS[layout]
    mask = torch.zeros(spans.num_queries, num_keys, dtype=torch.bool)
    for (a, z), (i, j) in zip(spans.queries, spans.keys, strict=True):
        mask[a:z, i:j] = True
    exact = draw(spans, num_keys)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        for scale in (None, 0.7):
            inputs = [x.to(dtype) for x in exact]
            wanted = attention(*exact, mask=mask, scale=scale, backend="reference")
            made = attention(*inputs, spans=spans, scale=scale, backend=backend)
            torch.testing.assert_close(made.double(), wanted, rtol=0, atol=tolerance)
        if backend != "flex":
            grads = []
            for leaves, rule in ((exact, {"mask": mask}), (inputs, {"spans": spans, "backend": backend})):
                leaves = [x.clone().requires_grad_() for x in leaves]
                grads.append(torch.autograd.grad(attention(*leaves, **rule).square().sum(), leaves))
            for x, y in zip(*grads, strict=True):
                torch.testing.assert_close(x, y.double(), rtol=0, atol=50 * tolerance)


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("backend", ["sdpa", "flex", "xformers"])
def test_without_a_mask_all_keys_are_seen(backend: str) -> None:
    q, k, v = draw(*LAYOUTS["cached"])
    wanted = attention(q, k, v, scale=0.3, backend="reference")
    torch.testing.assert_close(attention(q, k, v, scale=0.3, backend=backend), wanted)


@pytest.mark.usefixtures("xformers")
def test_level_masks_take_the_backends() -> None:
    mask = ScaleMask((1, 4, 9), "reverse")
    q, k, v = torch.randn(3, 2, 2, 14, 4, dtype=torch.float64)
    wanted = attention(q, k, v, mask=mask.dense(), backend="reference")
    for form in ("masked", "grouped", "flex", "xformers"):
        torch.testing.assert_close(ScaleAttention(mask, form)(q, k, v), wanted)


def test_masks_are_made_once_for_a_layout_and_can_be_trained_with_after_inference(monkeypatch) -> None:
    from torch.nn.attention import flex_attention

    made = []
    make = flex_attention.create_block_mask
    monkeypatch.setattr(flex_attention, "create_block_mask", lambda *a, **k: made.append(1) or make(*a, **k))
    inputs = draw(Spans(((0, 11),)), 11)
    with torch.inference_mode():
        for _ in range(2):
            # Equal layouts, not the same object.
            attention(*inputs, spans=Spans(((0, 5), (5, 11))), backend="flex")
            attention(*inputs, spans=Spans(((0, 5), (5, 11))))
    assert len(made) == 1
    spans, device = Spans(((0, 5), (5, 11))), torch.device("cpu")
    assert spans.dense(11, device) is Spans(((0, 5), (5, 11))).dense(11, device)
    assert not spans.dense(11, device).is_inference()
    leaves = [x.requires_grad_() for x in inputs]
    attention(*leaves, spans=spans).sum().backward()
    assert all(x.grad is not None for x in leaves)


def request(**changes: Any) -> DenseRequest:
    usual = DenseRequest(torch.device("cpu"), torch.float32, 64, needs_grad=False, num_keys=100, rule="spans")
    return usual._replace(**changes)


def refusal(name: str, is_named: bool = True, **changes: Any) -> str | None:
    (backend,) = (backend for backend in BACKENDS if backend.name == name)
    return backend.refuse(request(**changes), is_named)


def test_backends_say_what_they_cannot_do(monkeypatch) -> None:
    cuda, half = torch.device("cuda"), torch.bfloat16
    monkeypatch.setattr("diffusers.utils.is_kernels_available", lambda: False)
    for name, changes, reason in (
        ("grouped", {"rule": "all"}, "there are no groups"),
        ("grouped", {"rule": "mask"}, "it takes spans"),
        ("flex", {"rule": "mask"}, "give spans"),
        ("flex", {"device": torch.device("meta")}, "the inputs are on meta"),
        ("flex", {"needs_grad": True}, "no gradient on a CPU"),
        ("flex", {"device": cuda, "head_dim": 48}, "the head size is 48, no power of two"),
        ("xformers", {"rule": "mask"}, "give spans"),
        ("hub", {"device": cuda, "dtype": half}, "takes no mask"),
        ("hub", {"rule": "all"}, "the inputs are on cpu"),
        ("hub", {"rule": "all", "device": cuda}, "the inputs are torch.float32"),
        ("hub", {"rule": "all", "device": cuda, "dtype": half}, "the package kernels is not installed"),
    ):
        assert reason in str(refusal(name, **changes)), (name, changes)
    assert refusal("flex", device=cuda) is None
    monkeypatch.setattr("diffusers.utils.is_kernels_available", lambda: True)
    assert refusal("hub", rule="all", device=cuda, dtype=half) is None
    assert refusal("sdpa", dtype=half, needs_grad=True) is None
    assert "five times as long" in str(refusal("sdpa", is_named=False, dtype=half, needs_grad=True))
    for has_amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has_amx=has_amx: has_amx)
        assert ("twice as long" in str(refusal("sdpa", is_named=False, dtype=half))) != has_amx
    assert refusal("sdpa", is_named=False) is None


def test_xformers_is_refused_where_it_is_not_there_or_has_no_operator(monkeypatch, xformers) -> None:
    assert refusal("xformers", needs_grad=True) is None
    assert "none of its operators can run here (standin: dtype=torch.float16)" in str(
        refusal("xformers", dtype=torch.float16)
    )
    xformers.ALL_BW_OPS = []
    assert refusal("xformers") is None
    assert "(it has none)" in str(refusal("xformers", needs_grad=True))
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    assert "xformers cannot be imported" in str(refusal("xformers"))
    q, k, v = draw(*LAYOUTS["reverse"])
    with pytest.raises(RuntimeError, match="backend 'xformers' of attention cannot run: xformers cannot be imported"):
        attention(q, k, v, backend="xformers")


def test_hub_kernels_are_called_through_the_dispatcher_of_diffusers(monkeypatch) -> None:
    """With a backend of the dispatcher that needs no download."""
    monkeypatch.setattr(dense_backends, "HUB_KERNEL", "_native_math")
    q, k, v = draw(*LAYOUTS["cached"])
    made = dense_backends.hub(q, k, v, mask=None, spans=None, scale=0.4)
    torch.testing.assert_close(made, attention(q, k, v, scale=0.4, backend="reference"))


def test_auto_says_once_what_it_took(caplog) -> None:
    dispatch._log_once.cache_clear()
    inputs = draw(*LAYOUTS["reverse"])
    with caplog.at_level(logging.INFO, logger="hiergen.kernels.dispatch"):
        for _ in range(2):
            attention(*inputs)
            attention(*(x.bfloat16().requires_grad_() for x in inputs))
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == "attention runs on backend 'sdpa'"
    assert caplog.messages[1].startswith("attention runs on backend 'reference' (not sdpa: on a CPU, in bfloat16")


def test_errors() -> None:
    q, k, v = draw(*LAYOUTS["reverse"])
    spans, mask = Spans(((0, 9),)), torch.ones(9, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match="mask and spans were both given, expected one of them"):
        attention(q, k, v, mask=mask, spans=spans)
    with pytest.raises(ValueError, match="spans are of 8 queries and 8 keys, the inputs hold 9 and 9"):
        attention(q, k, v, spans=Spans(((0, 8),)))
    with pytest.raises(ValueError, match="spans are of 9 queries and 10 keys"):
        attention(q, k, v, spans=Spans(((0, 9),), ((0, 10),)))
    for queries in (((1, 2),), ((0, 2), (3, 4)), ((0, 0),)):
        with pytest.raises(ValueError, match=r"queries is .*, expected consecutive groups from 0, none of them empty"):
            Spans(queries)
    for keys in (((0, 2),), ((0, 2), (2, 2)), ((-1, 2), (0, 4))):
        with pytest.raises(ValueError, match=r"keys is .*, expected a run of keys for each of the 2 groups"):
            Spans(((0, 2), (2, 4)), keys)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_keys": 680, "num_groups": 10}, "grouped"),
        ({"num_keys": 511, "num_groups": 10}, "sdpa"),
        # Groups of one token each: a call for each would take seconds.
        ({"num_keys": 680, "num_groups": 680}, "sdpa"),
        ({"num_keys": 680, "num_groups": 10, "dtype": torch.bfloat16}, "sdpa"),
        ({"num_keys": 680, "num_groups": 10, "device": torch.device("cuda")}, "sdpa"),
        ({"num_keys": 680, "num_groups": 10, "rule": "mask"}, "sdpa"),
    ],
)
def test_auto_takes_calls_per_group_where_they_were_measured_to_pay(changes, expected) -> None:
    assert dispatch.choose("attention", BACKENDS, request(**changes)).name == expected


def test_auto_counts_the_groups(monkeypatch) -> None:
    """Not only the request does: the call that makes it."""
    calls, fused = [], F.scaled_dot_product_attention

    def counted(query: Tensor, *args: Any, **options: Any) -> Tensor:
        calls.append(query.shape[2])
        return fused(query, *args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for sizes, expected in (((200, 312), [200, 312]), ((1,) * 512, [512])):
        ends = [sum(sizes[: count + 1]) for count in range(len(sizes))]
        spans = Spans(tuple(zip([0, *ends[:-1]], ends, strict=True)))
        calls.clear()
        attention(*draw(spans, 512, torch.float32), spans=spans)
        assert calls == expected
