"""The log-likelihood of generators that have one exactly, against single probabilities and against the sum over everything."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from hiergen.generators.conditioning import Unconditional
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.pyramid import LevelSpec, TokenPyramid
from tests.generators.test_known import CASES, LABELS, Case

HNET: dict[str, Any] = {
    "num_classes": 4, "layout": ["m1T1", ["T1m1"], "M1t1"], "dims": [8, 12], "num_heads": [2, 2], "windows": [3, None],
    "state_dim": 4, "head_dim": 4, "chunk_size": 4,
}  # fmt: skip
EXACT = {name: CASES[name] for name in ("level", "token", "scale", "random order", "block")} | {
    "chunks": Case(HNet, CASES["block"].specs, None, HNET),
}


@pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)
def test_a_score_is_the_sum_of_log_probabilities(case: Case) -> None:
    model, tokens = case.model(), case.tokens()
    found = model.train().score(tokens, LABELS)
    assert model.training
    assert [part.shape for part in found] == [(4,)] * len(case.specs)
    model.eval()
    loss = model.loss(tokens, LABELS)["loss"]
    total = torch.stack(found).sum(dim=0)
    if case is not EXACT["chunks"]:
        # Chunks have losses of their own.
        torch.testing.assert_close(-total.mean() / sum(spec.num_tokens for spec in case.specs), loss.detach())
    for sample in range(4):
        alone = model.score(tokens[sample : sample + 1], LABELS[sample : sample + 1])
        torch.testing.assert_close(torch.cat(alone), torch.stack(found)[:, sample])


FEW = tuple(LevelSpec(count, dim=4, vocab_size=2) for count in (1, 1, 2))
FLAT = (LevelSpec(1, (1, 1), dim=4, vocab_size=2), LevelSpec(3, (1, 3), dim=4, vocab_size=2))


@pytest.mark.parametrize("name", EXACT)
def test_probabilities_of_all_pyramids_add_up_to_one(name: str) -> None:
    case = dataclasses.replace(EXACT[name], specs=FLAT if name in ("scale", "token", "random order") else FEW)
    model = case.model().double()
    ids = torch.tensor(list(itertools.product((0, 1), repeat=4)))
    every = TokenPyramid.split(ids, case.specs)
    for condition in (torch.full((16,), 2), Unconditional(16)):
        levels = torch.stack(model.score(every, condition))
        torch.testing.assert_close(levels.sum(dim=0).exp().sum(), torch.ones((), dtype=torch.float64))
        # The first level by itself too: half of the pyramids begin alike.
        first = levels[0][[0, 15]].exp().sum()
        torch.testing.assert_close(first, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("name", ["ids", "masked", "cascade", "flow"])
def test_others_say_that_they_have_none(name: str) -> None:
    case = CASES[name]
    with pytest.raises(ValueError, match=f"{case.build.__name__} has no exact likelihood, expected a generator of ids"):
        case.model().score(case.tokens(), LABELS)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused() -> None:
    case = CASES["level"]
    with pytest.raises(ValueError, match="the pyramid's levels are"):
        case.model().score(case.tokens().prefix(2), LABELS)
    with pytest.raises(ValueError, match="class labels span 0 to 9, expected 0 to 3"):
        case.model().score(case.tokens(), torch.tensor([0, 1, 2, 9]))
