"""Texts from all sources, and the rows that are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.data.stream import SampleStream
from hiergen.data.text.config import TextDataConfig
from hiergen.data.text.dataset import TextSet
from hiergen.data.text.sources import Documents, open_documents
from hiergen.generators.sequences.texts import BEGIN, END

DOCUMENTS = Documents(("a", "b", "c"), (b"abcd", b"ef", b"ghijklm"))


def test_embedded_texts_are_divided_by_documents() -> None:
    train, test = (open_documents(TextDataConfig(split=split)) for split in ("train", "test"))
    assert not set(train.names) & set(test.names)
    whole = open_documents(TextDataConfig(hold_out=0))
    assert set(whole.names) == set(train.names) | set(test.names)
    assert len(test.names) == -(-len(whole.names) // 7)
    assert sum(map(len, whole.texts)) > 300_000
    assert any(name == "this.py" for name in open_documents(TextDataConfig("python", hold_out=0)).names)
    assert any(b"iris" in text.lower() for text in open_documents(TextDataConfig("descriptions", hold_out=0)).texts)


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.txt").write_text("naïve")
    (tmp_path / "two.md").write_text("two")
    (tmp_path / "empty.txt").touch()
    found = open_documents(TextDataConfig(str(tmp_path), hold_out=0))
    assert found.names == ("sub/one.txt", "two.md")
    assert found.texts == ("naïve".encode(), b"two")
    (tmp_path / "raw").write_bytes(b"\xff\x00")
    assert open_documents(TextDataConfig(str(tmp_path / "raw"), hold_out=0)).texts == (b"\xff\x00",)
    rows = TextSet.open(TextDataConfig(str(tmp_path / "two.md"), hold_out=0, length=4))
    before = rows.content()
    assert before is not None
    (tmp_path / "two.md").write_text("too")
    assert rows.content() != before


def test_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"text": ["one", "", "two"], "number": [1, 2, 3]})
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    assert open_documents(TextDataConfig(f"hf:{tmp_path / 'set'}")).texts == (b"one", b"two")
    for match, config in (
        ("with split 'x' cannot be read", TextDataConfig(f"hf:{tmp_path / 'set'}", split="x")),
        ("column is 'body', the data set .* has text, number", TextDataConfig(f"hf:{tmp_path / 'set'}", column="body")),
        ("column 'number' of .* holds int, expected texts", TextDataConfig(f"hf:{tmp_path / 'set'}", column="number")),
    ):
        with pytest.raises(ValueError, match=match):
            open_documents(config)


def test_rows_are_the_documents_one_behind_the_other() -> None:
    rows = TextSet(DOCUMENTS, length=5)
    line = [BEGIN, *b"abcd", END, BEGIN, *b"ef", END, BEGIN, *b"ghijklm", END]
    found = rows.batch([(index, 0) for index in range(len(rows))], seed=0)
    assert found["ids"].flatten().tolist() == [*line, line[0]]
    assert found["starts"].flatten().nonzero()[:, 0].tolist() == [0, 6, 10, 19]
    assert "starts" not in TextSet(DOCUMENTS, length=5, masks_texts=False).batch([(0, 0)], seed=0)
    assert rows.num_bytes == 13


def test_documents_begin_at_multiples() -> None:
    rows = TextSet(DOCUMENTS, length=8, multiple=4)
    for epoch in (0, 1, 2, 3):
        found = rows.batch([(index, epoch) for index in range(len(rows))], seed=0)
        assert not found["starts"].unflatten(1, (-1, 4))[..., 1:].any()
    found = rows.batch([(0, 0), (1, 0)], seed=0)
    assert found["ids"].flatten().tolist()[:8] == [BEGIN, *b"abcd", END, END, END]


def test_a_row_is_a_function_of_seed_epoch_and_index() -> None:
    """So a run that goes on reads what it would have read: the stream of all data."""
    rows = TextSet(DOCUMENTS, length=5)
    streams = [SampleStream(TextSet(DOCUMENTS, length=5), batch_size=2, seed=3) for _ in range(2)]
    whole = [streams[0][step]["ids"] for step in range(6)]
    assert all(torch.equal(whole[step], streams[1][step]["ids"]) for step in (5, 3, 4))
    epochs = {tuple(rows.batch([(1, epoch)], seed=3)["ids"][0].tolist()) for epoch in range(12)}
    assert len(epochs) == 5
    still = TextSet(DOCUMENTS, length=5, shifts=False)
    assert len({tuple(still.batch([(1, epoch)], seed=3)["ids"][0].tolist()) for epoch in range(12)}) == 1
    assert rows.fingerprint != still.fingerprint
    assert rows.fingerprint == TextSet(DOCUMENTS, length=5).fingerprint
    assert rows.content() is None


def test_bad_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    cases: list[tuple[str, Any]] = [
        ("hold_out is 1, expected 0 or at least 2", lambda: TextDataConfig(hold_out=1)),
        ("split is 'dev', expected one of train, test", lambda: TextDataConfig(split="dev")),
        ("length is 1, expected at least 2", lambda: TextDataConfig(length=1)),
        ("which is no file or folder, nor one of topics", lambda: open_documents(TextDataConfig("topic"))),
        ("holds no text, expected at least one", lambda: open_documents(TextDataConfig(str(tmp_path)))),
        ("length is 6, expected a multiple of 4", lambda: TextSet(DOCUMENTS, length=6, multiple=4)),
        ("documents holds no text", lambda: TextSet(Documents((), ()), length=4)),
    ]
    for match, call in cases:
        with pytest.raises(ValueError, match=match):
            call()
    (tmp_path / "one.txt").write_text("x")
    with pytest.raises(ValueError, match=r"the split 'train' of .* holds no text: it has 1"):
        open_documents(TextDataConfig(str(tmp_path / "one.txt")))
