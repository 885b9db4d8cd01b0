"""What the study of sequences is made of: spelling errors, chunks by a rule, a vocabulary of words, speed side by side."""

from __future__ import annotations

import collections
import json
import math

import pytest
import torch

from hiergen.data.text.sources import Documents
from hiergen.evaluation.texts.noise import misspell, misspelled
from hiergen.evaluation.texts.rules import RuledRouter, follow_rule
from hiergen.evaluation.texts.scores import bits_per_byte
from hiergen.evaluation.texts.speed import PAIRS, SpeedStudySettings, run_speed_study
from hiergen.evaluation.texts.vocabulary import PieceSet, Vocabulary
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.generators.sequences.texts import Texts
from hiergen.registry import create

SMALL = {"layout": ["m1", ["T1"], "m1"], "dims": [16, 32], "num_heads": [2, 2], "head_dim": 16, "state_dim": 8}


def small(**changes: object) -> HNet:
    torch.manual_seed(0)
    made: HNet = create("hnet-tiny", **{**SMALL, **changes})
    return made


def test_letters_are_left_out_doubled_or_swapped_equally_often() -> None:
    found = collections.Counter(misspell(b"ab", 1.0, rng=torch.Generator().manual_seed(k)) for k in range(600))
    assert set(found) == {b"", b"aa", b"bb", b"aabb", b"ba"}
    assert found[b"ba"] / 600 == pytest.approx(1 / 3, abs=0.06)
    assert (found[b""] + found[b"bb"]) / 600 == pytest.approx(1 / 3, abs=0.06)


def test_only_as_many_letters_are_wrong_as_were_asked_for() -> None:
    rng = torch.Generator().manual_seed(0)
    text = "1 2 3 ä\n".encode()
    assert misspell(text, 1.0, rng=rng) == text
    documents = Documents(("a", "b"), (b"Some words. " * 100, b"Some words. " * 100))
    assert misspelled(documents, 0.0).texts == documents.texts
    first, second = misspelled(documents, 0.1).texts
    assert first != second, "each document has errors of its own"
    assert (first, second) == misspelled(documents, 0.1).texts
    kept = sum(word in (b"Some", b"words.") for word in first.split()) / 200
    assert kept == pytest.approx(0.9**4.5, abs=0.08)
    with pytest.raises(ValueError, match=r"share is 1\.5, expected 0 to 1"):
        misspell(b"a", 1.5, rng=rng)


def test_a_rule_cuts_chunks_and_leaves_the_router_alone() -> None:
    ids = torch.tensor([list(b"one two\n  three"), list(b"no blanks here!")])
    starts = torch.zeros_like(ids, dtype=torch.bool)
    starts[0, 5] = True
    every = follow_rule(small(), "every", every=4)
    assert every.find_boundaries(ids)[0].nonzero().tolist() == [[row, at] for row in (0, 1) for at in (0, 4, 8, 12)]
    assert every.find_boundaries(ids[:1], starts=starts[:1])[0].nonzero()[:, 1].tolist() == [0, 4, 5, 8, 12]
    spaces = follow_rule(small(), "spaces")
    assert spaces.find_boundaries(ids)[0].nonzero().tolist() == [[0, 0], [0, 4], [0, 10], [1, 0], [1, 3], [1, 10]]
    spaces.loss(Texts(ids))["loss"].backward()
    assert spaces.stages[1].encoder.layers[0].norm1.weight.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in spaces.stages[0].router.parameters())
    assert follow_rule(model := small(), "router") is model
    assert not isinstance(model.stages[0].router, RuledRouter)


def test_a_rule_is_refused_where_it_does_not_apply() -> None:
    with pytest.raises(ValueError, match="the model has 0 stages of chunks, expected 1"):
        follow_rule(small(layout=["T1"], dims=[16], num_heads=[2]), "every")
    ruled = follow_rule(small(), "every")
    with pytest.raises(ValueError, match="chunks by a rule are for whole rows"):
        ruled(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([5]))


def test_a_vocabulary_spells_what_it_does_not_know() -> None:
    texts = (b"the cat the dog the cat", b"the end")
    vocabulary = Vocabulary.of(texts, 258)
    assert list(vocabulary.ids) == [b" cat", b" the"], (
        "the commonest, in the order of their bytes where they are as common"
    )
    assert vocabulary.encode(b"the cat") == [*b"the", 256]
    assert vocabulary.sizes[vocabulary.encode(texts[0])].sum() == len(texts[0])
    data = PieceSet(Documents(("a", "b"), texts), vocabulary, length=4)
    rows = [254, *vocabulary.encode(texts[0]), 255, 254, *vocabulary.encode(texts[1]), 255]
    batch = data.batch([(k, 0) for k in range(len(data))], seed=0)
    assert batch["ids"].flatten().tolist()[: len(rows)] == rows
    assert batch["starts"].flatten()[: len(rows)].nonzero().flatten().tolist() == [0, rows.index(254, 1)]
    assert data.bytes_per_id == (len(texts[0]) + len(texts[1]) + 4) / len(rows)
    with pytest.raises(ValueError, match="size is 256, expected more than the 256 bytes"):
        Vocabulary.of(texts, 256)


def test_bits_are_counted_per_byte_whatever_the_vocabulary() -> None:
    texts = (b"the cat the dog the cat. " * 12,)
    vocabulary = Vocabulary.of(texts, 260)
    model = small(layout=["T1"], dims=[16], num_heads=[2], vocab_size=260)
    torch.nn.init.zeros_(model.head.weight)
    data = PieceSet(Documents(("a",), texts), vocabulary, length=64, shifts=False)
    ids = data.batch([(k, 0) for k in range(len(data))], seed=0)
    scored = ids["ids"][:, 1:][~ids["starts"][:, 1:]]
    expected = math.log2(260) * len(scored) / int(vocabulary.sizes[scored].sum())
    assert bits_per_byte(model, data, sizes=vocabulary.sizes) == pytest.approx(expected, rel=1e-5)


def test_speed_is_measured_side_by_side(tmp_path, monkeypatch, capsys) -> None:
    flat = {"layout": ["T1"], "dims": [16], "num_heads": [2]}
    block = {"dim": 16, "depth": 1, "num_heads": 2, "token_dim": 16, "token_depth": 1, "token_heads": 2}
    monkeypatch.setitem(PAIRS, "small", (flat, block))
    run_speed_study(
        SpeedStudySettings(out=str(tmp_path), pairs=("small",), batches=(1, 3), contexts=(8,), steps=4, turns=2)
    )
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 3]
    for row in rows:
        assert row["least_ratio"] <= row["ratio"] <= row["greatest_ratio"]
        assert row["first_bytes_per_second"] > 0
    assert (tmp_path / "speed.md").read_text() in capsys.readouterr().out
