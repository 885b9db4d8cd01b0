"""Importance estimators against plain loops."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from hiergen.kernels.pyramid_attention.planning.importance import (
    ImportanceRequest,
    antidiagonal_scores,
    draw_offsets,
    estimate_importance,
    pooled_scores,
    sampled_scores,
)

REQUEST = ImportanceRequest(query_block=16, key_block=16, stride=4)


def _inputs(queries: int = 40, keys: int = 55, heads: int = 2, key_heads: int = 1):
    rng = torch.Generator().manual_seed(1)
    make = lambda h, n: torch.randn(1, h, n, 8, generator=rng)  # noqa: E731
    return make(heads, queries), make(key_heads, keys)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_sampled_scores_equal_loops(softmax, is_causal):
    q, k = _inputs()
    rng = torch.Generator().manual_seed(5)
    at_q, at_k = (draw_offsets((1, h), 16, 4, rng, q.device) for h in (2, 1))
    request = dataclasses.replace(REQUEST, query_offsets=at_q, key_offsets=at_k, is_causal=is_causal, key_offset=15)
    scores = sampled_scores(q, k, request, softmax=softmax)
    for h in range(2):
        wanted = torch.zeros(3, 4)
        for i in range(3):
            for r in at_q[0, h].tolist():
                row = min(i * 16 + r, 39)
                positions = [[min(j * 16 + c, 54) for c in at_k[0, 0].tolist()] for j in range(4)]
                logits = [
                    [float(q[0, h, row] @ k[0, 0, p]) / math.sqrt(8) for p in block if not is_causal or p <= 15 + row]
                    for block in positions
                ]
                best = max(max(block, default=-math.inf) for block in logits)
                if best == -math.inf:
                    continue
                total = sum(math.exp(x - best) for block in logits for x in block) if softmax else 1.0
                for j in range(4):
                    wanted[i, j] = max([float(wanted[i, j]), *(math.exp(x - best) / total for x in logits[j])])
        wanted = wanted / wanted.sum(-1, keepdim=True)
        torch.testing.assert_close(scores[0, h], wanted, rtol=1e-4, atol=1e-6)


def test_repeated_samples_rescale_a_row_and_no_more():
    # The official kernel repeats samples up to a multiple of 64; rows then sum to less than one.
    q, k = _inputs(keys=55)
    plain = sampled_scores(q, k, REQUEST)
    padded = sampled_scores(q, k, dataclasses.replace(REQUEST, sample_multiple=64))
    torch.testing.assert_close(padded / padded.sum(-1, keepdim=True), plain)
    assert (padded.sum(-1) < 1).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_pooled_scores_equal_loops(is_causal):
    q, k = _inputs()
    scores = pooled_scores(
        q, k, dataclasses.replace(REQUEST, is_causal=is_causal, key_offset=15), query_pool=8, key_pool=8
    )
    for h in range(2):
        wanted = torch.zeros(3, 4)
        for i in range(3):
            for a in range(i * 16, min(i * 16 + 16, 40), 8):
                mean = q[0, h, a : a + 8].mean(0)
                mass = []
                for b in range(0, 55, 8):
                    group = k[0, 0, b : b + 8]
                    hidden = is_causal and b > 15 + a + 7
                    mass.append(0.0 if hidden else len(group) * math.exp(float(mean @ group.mean(0)) / math.sqrt(8)))
                for j in range(4):
                    wanted[i, j] += sum(mass[2 * j : 2 * j + 2]) / sum(mass) / 2
        torch.testing.assert_close(scores[0, h], wanted, rtol=1e-5, atol=1e-6)


def test_block_means_are_exact_when_blocks_are_constant():
    q, k = (x[:, :, torch.arange(48) // 16 * 16] for x in _inputs(48, 48))
    scores = estimate_importance("block_mean", q, k, REQUEST)
    mass = (q @ k.transpose(-1, -2) / math.sqrt(8)).softmax(-1).unflatten(-1, (3, 16)).sum(-1)[:, :, ::16]
    torch.testing.assert_close(scores, mass)


@pytest.mark.parametrize(("is_causal", "queries", "keys"), [(True, 48, 48), (True, 37, 37), (False, 37, 55)])
def test_antidiagonal_scores_equal_loops(is_causal, queries, keys):
    q, k = _inputs(queries, keys)
    scores = antidiagonal_scores(q, k, dataclasses.replace(REQUEST, is_causal=is_causal))
    at = lambda x, h, t: x[0, h, t] if t < x.shape[2] else torch.zeros(8)  # noqa: E731
    rows, columns = -(-queries // 4), -(-keys // 4)
    wanted = torch.zeros(2, -(-queries // 16), -(-keys // 16))
    for h in range(2):
        for t in range(rows):
            logits = [
                sum(float(at(q, h, 4 * t + 3 - s) @ at(k, 0, 4 * u + s)) for s in range(4)) / (math.sqrt(8) * 4)
                for u in range(columns)
            ]
            logits = [x if not is_causal or u <= t else -math.inf for u, x in enumerate(logits)]
            for u, weight in enumerate(torch.tensor(logits).softmax(0).tolist()):
                wanted[h, t // 4, u // 4] += weight
    torch.testing.assert_close(scores[0], wanted, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing():
    q, k = _inputs(32, 32)
    longer = torch.cat([k, torch.full((1, 1, 16, 8), 50.0)], dim=2)
    mask = (torch.arange(48) < 32)[None]
    for name in ("sampled", "sampled_softmax", "pyramid", "block_mean", "antidiagonal"):
        scores = estimate_importance(name, q, longer, dataclasses.replace(REQUEST, key_mask=mask))
        torch.testing.assert_close(scores[..., :2], estimate_importance(name, q, k, REQUEST))
        assert torch.equal(scores[..., 2], torch.zeros_like(scores[..., 2]))


def test_draws_are_reproducible_and_leave_the_global_state_alone():
    q, k = _inputs()
    state = torch.get_rng_state()
    first, second = (
        sampled_scores(q, k, dataclasses.replace(REQUEST, rng=torch.Generator().manual_seed(3))) for _ in range(2)
    )
    other = sampled_scores(q, k, dataclasses.replace(REQUEST, rng=torch.Generator().manual_seed(4)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert draw_offsets((1, 1), 16, 4, None, q.device).flatten().tolist() == [2, 6, 10, 14]


@pytest.mark.usefixtures("unchecked")
def test_errors():
    q, k = _inputs()
    with pytest.raises(ValueError, match="stride is 3, expected a divisor of the blocks 16 and 16"):
        antidiagonal_scores(q, k, dataclasses.replace(REQUEST, stride=3))
    with pytest.raises(ValueError, match="importance is 'x', expected 'sampled'"):
        estimate_importance("x", q, k, REQUEST)
