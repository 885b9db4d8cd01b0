from __future__ import annotations

import math

import pytest
import torch

from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.training.tasks.codebook_health import CodebookCounter, CodeRevival, perplexity
from hiergen.training.tasks.term_settings import CodebookConfig

SPECS = (LevelSpec(num_tokens=1, dim=2, vocab_size=4), LevelSpec(num_tokens=2, dim=2, vocab_size=4))


def pyramid(first: list[list[int]], second: list[list[int]]) -> TokenPyramid:
    return TokenPyramid((torch.tensor(first), torch.tensor(second)), SPECS)


def test_use_by_level_over_several_batches_by_hand() -> None:
    counter = CodebookCounter(SPECS)
    counter.add(pyramid([[0], [0]], [[1, 2], [3, 1]]))
    counter.add(pyramid([[0], [2]], [[1, 1], [3, 1]]))
    values = {name: float(value) for name, value in counter.summary(lambda x: 2 * x).items()}
    assert values["usage_0"] == 0.5
    assert values["dead_0"] == 2
    assert values["perplexity_0"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    # Four samples on two processes: 8 ids of level 0, of 4 codes; had there been fewer ids than codes, those would count.
    assert values["reach_0"] == 0.5
    counter.add(pyramid([[0]], [[1, 1]]))
    assert {k: float(v) for k, v in counter.summary(lambda x: x).items() if k.startswith("reach")} == {
        "reach_0": 1.0,
        "reach_1": 0.5,
    }
    assert values["usage_1"] == 0.75
    assert values["perplexity_1"] == pytest.approx(
        math.exp(-(0.625 * math.log(0.625) + 0.125 * math.log(0.125) + 0.25 * math.log(0.25)))
    )
    assert counter.summary(lambda x: x) == {}
    assert float(perplexity(torch.full((5,), 3.0))) == pytest.approx(5)
    with pytest.raises(ValueError, match="level 0 is continuous"):
        CodebookCounter((LevelSpec(num_tokens=1, dim=2, vocab_size=None),))


def test_only_codes_that_nothing_chose_for_long_are_revived() -> None:
    revival = CodeRevival(4, after=100)
    revival.note(pyramid([[0]], [[2, 2]]), 60)
    codebook = torch.zeros(4, 2)
    latents = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    rng = torch.Generator().manual_seed(0)
    assert int(revival.revive(codebook, latents, 99, rng)) == 0
    assert torch.equal(codebook, torch.zeros(4, 2))
    assert int(revival.revive(codebook, latents, 100, rng)) == 2
    assert torch.equal(codebook[[0, 2]], torch.zeros(2, 2))
    assert all(row in ([1.0, 2.0], [3.0, 4.0]) for row in codebook[[1, 3]].tolist())
    # A revived code has as long to be chosen as a new one; the others' time is up at 160.
    assert int(revival.revive(codebook, latents, 160, rng)) == 2
    assert revival.last_used.tolist() == [160, 100, 160, 100]
    with pytest.raises(ValueError, match="revive_after is 0, expected at least 1 or None"):
        CodebookConfig(revive_after=0)
