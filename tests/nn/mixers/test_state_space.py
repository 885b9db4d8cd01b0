"""Mamba-2: its three forms agree with each other and with loops over single numbers, and it refuses sizes that do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hiergen.nn.mixers.state_space import Mamba2, MambaState, scan

SIZES: dict[str, Any] = {"state_dim": 5, "conv_width": 4, "expand": 2, "head_dim": 4, "chunk_size": 4}
N, DIM = 13, 6


def build(**sizes: Any) -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(DIM, **{**SIZES, **sizes}).double()


def tokens(batch: int = 3, num_tokens: int = N) -> Tensor:
    return torch.randn(batch, num_tokens, DIM, generator=torch.Generator().manual_seed(1)).double()


def plain(model: Mamba2, u: Tensor) -> Tensor:
    """One row `(n, d)`, number by number."""
    w = dict(model.named_parameters())
    inner, m, heads = model.inner_dim, model.state_dim, model.num_heads
    size = inner // heads
    z, xbc, delta = (u @ w["in_proj.weight"].T).split([inner, inner + 2 * m, heads], dim=-1)
    taps, bias = w["conv.weight"][:, 0], w["conv.bias"]
    state, found = torch.zeros(heads, size, m).double(), []
    for t in range(len(u)):
        pre = bias + sum(taps[:, j] * xbc[t - 3 + j] for j in range(4) if t - 3 + j >= 0)
        x, b, c = (pre * torch.sigmoid(pre)).split([inner, m, m])
        y = torch.zeros(inner).double()
        for h in range(heads):
            step = torch.log1p(torch.exp(delta[t, h] + w["dt_bias"][h]))
            part = x[h * size : (h + 1) * size]
            state[h] = torch.exp(-step * torch.exp(w["A_log"][h])) * state[h] + step * torch.outer(part, b)
            y[h * size : (h + 1) * size] = state[h] @ c + w["D"][h] * part
        y = y * z[t] * torch.sigmoid(z[t])
        found.append((y / (y.square().mean() + 1e-5).sqrt() * w["norm.weight"]) @ w["out_proj.weight"].T)
    return torch.stack(found)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_both_forms_equal_loops_over_single_numbers(form: Any) -> None:
    model, u = build(), tokens()
    with torch.no_grad():
        expected = torch.stack([plain(model, row) for row in u])
        torch.testing.assert_close(model(u, form=form), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_the_chunked_form_has_the_numbers_and_gradients_of_the_recurrence(chunk_size: int, packed: bool) -> None:
    starts = None
    if packed:
        starts = torch.zeros(3, N, dtype=torch.bool)
        starts[:, 0] = starts[0, 3] = starts[0, 4] = starts[1, 8] = starts[2, 5] = starts[2, 12] = True
    results = []
    for form, size in (("recurrent", 4), ("chunked", chunk_size)):
        model, u = build(chunk_size=size), tokens().requires_grad_()
        y = model(u, starts=starts, form=form)
        (y * torch.linspace(-1, 2, y.numel()).double().view_as(y)).sum().backward()
        results.append([y.detach(), u.grad, *[parameter.grad for parameter in model.parameters()]])
    for ours, reference in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cuts", [[1] * N, [6, 7], [2, 1, 9, 1], [N]])
def test_groups_with_a_state_equal_the_whole(cuts: list[int]) -> None:
    model, u, state = build(), tokens(), MambaState()
    parts = [model(part, state=state) for part in u.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(u), rtol=1e-9, atol=1e-9)


def test_rows_of_other_lengths_are_what_they_are_alone_and_so_is_what_follows() -> None:
    model, u, state = build(), tokens(), MambaState()
    lengths = torch.tensor([2, N, 7])
    first = model(u, state=state, lengths=lengths)
    follow = tokens(num_tokens=N + 3)[:, N:]
    # The second row has nothing more to say in the second group.
    counts = torch.tensor([3, 0, 1])
    second = model(follow, state=state, lengths=counts)
    for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
        alone = model(torch.cat((u[row, :length], follow[row, :count]))[None])[0]
        torch.testing.assert_close(first[row, :length], alone[:length], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(second[row, :count], alone[length:], rtol=1e-9, atol=1e-9)


def test_a_packed_sequence_is_what_it_is_alone() -> None:
    model, u = build(), tokens(batch=1)
    starts = torch.zeros(1, N, dtype=torch.bool)
    starts[0, [0, 2, 9]] = True
    alone = torch.cat([model(part) for part in u.split([2, 7, 4], dim=1)], dim=1)
    for form in ("recurrent", "chunked"):
        torch.testing.assert_close(model(u, starts=starts, form=form), alone, rtol=1e-9, atol=1e-9)


def test_nothing_before_a_changed_token_changes() -> None:
    model, u = build(), tokens()
    changed = u.clone()
    changed[:, 6] += 1.0
    difference = (model(changed) - model(u)).abs().amax(dim=(0, 2))
    assert difference[:6].max() == 0
    assert difference[6:].min() > 1e-6


def test_a_fast_decay_over_a_long_chunk_stays_finite() -> None:
    x, ones = torch.ones(1, 200, 1, 1, requires_grad=True), torch.ones(1, 200, 1)
    y, state = scan(x, torch.full((1, 200, 1), -30.0), ones, ones, chunk_size=200)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close(state, torch.ones(1, 1, 1, 1))


def test_bfloat16_computes_the_state_in_float32() -> None:
    model, u, state = build().bfloat16(), tokens().bfloat16(), MambaState()
    assert model(u, state=state).dtype == torch.bfloat16
    assert state.matrix is not None
    assert state.matrix.dtype == torch.float32
    wide = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert wide(u.float(), state=MambaState()).dtype == torch.bfloat16


def test_a_state_of_fewer_samples_goes_on_as_theirs() -> None:
    model, u, state = build(), tokens(), MambaState()
    state.keep_first(1)
    model(u[:, :9], state=state)
    state.keep_first(2)
    torch.testing.assert_close(model(u[:2, 9:], state=state), model(u)[:2, 9:], rtol=1e-9, atol=1e-9)


def test_the_start_and_the_number_of_parameters_are_the_published_ones() -> None:
    torch.manual_seed(0)
    model = Mamba2(1024)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_600_032
    step = torch.nn.functional.softplus(model.dt_bias)
    assert 0.99e-3 < step.min() < 4e-3 < 2e-2 < step.max() < 0.101
    assert 1 <= model.A_log.exp().min() < 4 < 13 < model.A_log.exp().max() <= 16
    assert (model.D == 1).all()
    assert math.isclose(model.conv.weight.abs().max().item(), 0.5, rel_tol=0.01)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"state_dim": 0}, "state_dim is 0, expected at least 1"),
        ({"head_dim": 5}, r"head_dim is 5, expected a divisor of expand \* dim = 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**sizes)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form is 'fast', expected one of"):
        scan(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), form="fast")
