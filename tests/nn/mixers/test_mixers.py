"""What every token mixer promises, tested for all of them by name."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch

from hiergen.nn.mixers.base import TokenMixer
from hiergen.nn.mixers.create import MIXERS, create_mixer

DIM, HEADS = 16, 1
#: Options of every mixer beside its defaults: all that change what is computed.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("depthwise", {}),
    ("depthwise", {"kernel_size": 3}),
    ("attention", {}),
    ("attention", {"reduction": 2}),
    ("attention", {"projection": "convolution"}),
    ("attention", {"projection": "convolution", "norm": "batch", "scale": "width"}),
    ("attention", {"local": True}),
    ("window", {"window": 4}),
    ("window", {"window": 4, "shift": 2}),
    ("window", {"window": 3, "shift": 1, "local": True}),
    ("neighborhood", {"kernel": 3}),
    ("neighborhood", {"kernel": 3, "dilation": 2}),
    ("neighborhood", {"kernel": 3, "dilation": 3, "small_maps": "pad"}),
    ("neighborhood", {"local": True}),
    ("linear", {}),
    ("linear", {"reduction": 2}),
    ("linear", {"reduction": 2, "resize": "sequence", "grid": [4, 4]}),
    ("gated_conv", {}),
    ("gated_conv", {"order": 5}),
    ("gated_conv", {"filter": "global_local", "frequency_grid": [5, 4]}),
    ("hyena", {}),
    ("hyena", {"directions": "standard", "kernel": "product", "window": "learned"}),
    ("hyena", {"directions": "sequential", "window": "root"}),
    ("hyena", {"directions": "sequential", "order": 3, "window": "none"}),
    ("hyena", {"directions": "four", "order": 3}),
]
MAPS = [(1, 1), (1, 7), (8, 8), (5, 9)]
all_cases = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[" ".join([name, *map(str, options.values())]) for name, options in CASES]
)


def make(name: str, options: dict[str, Any]) -> TokenMixer:
    """Return a mixer whose biases, norms and tables are not zero."""
    torch.manual_seed(0)
    mixer = create_mixer(name, DIM, num_heads=HEADS, **options)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    return mixer


def maps(height: int, width: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, height, width, DIM, generator=torch.Generator().manual_seed(2))


def test_every_mixer_is_a_case() -> None:
    assert {name for name, _ in CASES} == set(MIXERS)


@all_cases
def test_maps_of_every_size_keep_their_shape_and_every_weight_learns(name: str, options: dict[str, Any]) -> None:
    mixer = make(name, options)
    for height, width in MAPS:
        x = maps(height, width).requires_grad_()
        out = mixer(x)
        assert out.shape == x.shape
        out.square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()
    for key, parameter in mixer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@all_cases
def test_a_sample_does_not_depend_on_the_others(name: str, options: dict[str, Any]) -> None:
    mixer = make(name, options).train()
    x = maps(5, 9)
    alone = mixer(x[:1])
    if mixer.batch_independent:
        torch.testing.assert_close(mixer(x)[:1], alone, rtol=1e-4, atol=1e-5)
    else:
        assert (mixer(x)[:1] - alone).abs().max() > 1e-2
        assert options["norm"] == "batch"


@all_cases
@torch.no_grad()
def test_exactly_the_outputs_within_reach_change(name: str, options: dict[str, Any]) -> None:
    mixer = make(name, options).double().eval()
    for height, width in ((8, 8), (5, 9)):
        x = maps(height, width, 1).double()
        count = height * width
        rows, changes = torch.arange(count), torch.zeros(count, count, dtype=torch.float64)
        # Several changes, since a ReLU may hide one.
        for change in torch.randn(6, DIM, generator=torch.Generator().manual_seed(3)).mul(4).double():
            # One sample for every position that is changed.
            moved = x.repeat(count, 1, 1, 1)
            moved[rows, rows // width, rows % width] += change
            changes = torch.maximum(changes, (mixer(moved) - mixer(x)).abs().amax(dim=-1).flatten(1))
        reach = mixer.reach(height, width)
        wanted = torch.ones(count, count, dtype=torch.bool) if reach is None else reach
        # What a mixer of frequencies does not change moves by its rounding.
        assert torch.equal((changes > 1e-13).T, wanted)


@all_cases
@torch.no_grad()
def test_autocast_gives_about_the_same(name: str, options: dict[str, Any]) -> None:
    mixer, x = make(name, options).eval(), maps(5, 9)
    plain = mixer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = mixer(x)
    assert (narrow.float() - plain).norm() < 0.05 * plain.norm()


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_compiles_without_a_break(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Run-time checks of annotations cannot be captured; users do not run under them.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    torch.compiler.reset()
    mixer, x = make(name, {}).eval(), maps(5, 9)
    # The "eager" backend runs the captured graph as it is: capture is what is tested.
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), mixer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("neighbourhood", {}, r"unknown mixer 'neighbourhood'; did you mean neighborhood\?; known are"),
        (
            "factorized",
            {},
            r"the mixer 'factorized' was taken out because it did not pay .*; known are none, depthwise",
        ),
        ("window", {"windw": 3}, r"the mixer 'window' has no option 'windw'; did you mean window\?"),
        ("attention", {"reduction": 0}, "reduction is 0, expected at least 1"),
        ("attention", {"projection": "conv"}, r"projection is 'conv', expected one of \('linear', 'convolution'\)"),
        ("attention", {"norm": "group"}, r"norm is 'group', expected one of \('layer', 'batch'\)"),
        ("attention", {"scale": "dim"}, r"scale is 'dim', expected one of \('head', 'width'\)"),
        (
            "attention",
            {"projection": "convolution", "reduction": 2},
            "reduction is 2, expected 1 with projection='conv",
        ),
        ("attention", {"local": True, "reduction": 2}, "local is True, expected False where keys and values are of a"),
        ("depthwise", {"kernel_size": 4}, "kernel_size is 4, expected an odd number"),
        ("window", {"window": 0}, "window is 0, expected at least 1"),
        ("window", {"window": 4, "shift": 4}, "shift is 4, expected 0 to 3, below the window"),
        ("neighborhood", {"kernel": 2}, "kernel is 2, expected an odd number"),
        ("neighborhood", {"dilation": 0}, "dilation is 0, expected at least 1"),
        ("neighborhood", {"small_maps": "cut"}, "small_maps is 'cut', expected 'clamp' or 'pad'"),
        ("neighborhood", {"backend": "natten"}, r"backend is 'natten', expected one of \('gather', 'flex'\)"),
        ("linear", {"kernel_size": 2}, "kernel_size is 2, expected an odd number"),
        ("linear", {"grid": [0, 3]}, r"grid is \(0, 3\) and reduction is 1, expected at least 1"),
        ("linear", {"resize": "line"}, "resize is 'line', expected 'grid' or 'sequence'"),
        ("gated_conv", {"order": 6}, r"order is 6, expected at least 1 and that 2\^\(order - 1\) divides dim 16"),
        ("gated_conv", {"filter": "global"}, "filter is 'global', expected 'depthwise' or 'global_local'"),
        (
            "gated_conv",
            {"filter": "global_local", "frequency_grid": [0, 2]},
            r"frequency_grid is \(0, 2\) for 28 filtered channels, expected positive sides and an even number",
        ),
        ("hyena", {"axes": 4}, "axes is 4, expected 1 to 3"),
        ("hyena", {"order": 1}, "order is 1, expected at least 2"),
        ("hyena", {"kernel": "sum"}, r"kernel is 'sum', expected one of \('joint', 'product'\)"),
        ("hyena", {"directions": "4dir"}, r"directions is '4dir', expected one of \('standard', "),
        ("hyena", {"window": "sqrt"}, r"window is 'sqrt', expected one of \('fixed', "),
        ("hyena", {"window": "root", "kernel": "product"}, "window is 'root', expected another with kernel='product'"),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        create_mixer(name, DIM, num_heads=HEADS, **options)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads is 3, expected a divisor of dim 16"):
        create_mixer("window", 16, num_heads=3)
    with pytest.raises(ValueError, match=r"the map has sides \(5, 9\), expected equal ones with official_scale"):
        create_mixer("hyena", DIM, official_scale=True)(maps(5, 9))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 9, 16\), expected a batch, 3 axes and channels"):
        create_mixer("hyena", DIM, axes=3)(maps(5, 9))
    flex = create_mixer("neighborhood", DIM, kernel=3, backend="flex")
    with pytest.raises(RuntimeError, match="backend is 'flex', which has no gradients on a CPU: take 'gather' there"):
        flex(maps(5, 9))
