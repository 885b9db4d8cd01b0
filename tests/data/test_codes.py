from __future__ import annotations

import json

import pytest
import torch

from hiergen.data import codes as module
from hiergen.data.codes import CodeSet, write_codes
from hiergen.pyramid import LevelSpec, TokenPyramid

SPECS = (LevelSpec(1, None, 4, 16), LevelSpec(2, None, 4, 16))


def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
    index = torch.arange(start, stop)
    variants = [
        TokenPyramid((index[:, None] % 16, torch.stack([index % 16, index % 7 + v], 1)), SPECS) for v in range(2)
    ]
    return variants, index % 3


def write(folder, source: str = "s", encoder=encode) -> CodeSet:
    return write_codes(folder, encoder, num_samples=25, classes=["a", "b", "c"], source=source)


def test_written_is_read_and_variants_are_drawn_by_epoch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARD_SAMPLES", 10)
    codes = write(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert len(codes) == 25
    assert codes.specs == SPECS
    batch = codes.batch([(24, 0), (3, 1)], seed=0)
    assert batch["level_0"].flatten().tolist() == [24 % 16, 3]
    assert batch["label"].tolist() == [0, 0]
    assert codes.pyramid(batch).batch_size == 2
    drawn = {int(codes.batch([(5, epoch)], seed=0)["level_1"][0, 1]) for epoch in range(20)}
    assert drawn == {5, 6}
    again = codes.batch([(24, 0), (3, 1)], seed=0)
    assert all(torch.equal(batch[key], again[key]) for key in batch)


@pytest.mark.parametrize(("vocab", "dtype"), [(2**15, torch.int16), (2**15 + 1, torch.int32), (2**31 + 1, torch.int64)])
def test_ids_are_stored_small_and_come_back_whole(vocab, dtype, tmp_path) -> None:
    specs = (LevelSpec(2, None, 4, vocab),)
    ids = torch.tensor([[0, vocab - 1], [vocab // 2, 7]])

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        return [TokenPyramid((ids[start:stop],), specs)], torch.zeros(stop - start, dtype=torch.int64)

    codes = write_codes(tmp_path, encode, num_samples=2, classes=["a"], source="s")
    assert codes.levels[0].dtype == dtype
    pyramid = codes.pyramid(codes.batch([(0, 0), (1, 0)], seed=0))
    assert pyramid.levels[0].dtype == torch.int64
    assert torch.equal(pyramid.levels[0], ids)


def test_a_finished_cache_is_not_encoded_again_and_an_unfinished_one_is_continued(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARD_SAMPLES", 10)
    ranges = []

    def stops(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        ranges.append(start)
        if start == 20 and len(ranges) == 3:
            raise KeyboardInterrupt
        return encode(start, stop)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, encoder=stops)
    with pytest.raises(ValueError, match="no finished cache"):
        CodeSet.open(tmp_path)
    resumed = write(tmp_path, encoder=stops)
    assert ranges[3:] in ([20], [0, 20])
    write(tmp_path, encoder=stops)
    assert len(ranges) <= 5
    monkeypatch.undo()
    whole = write(tmp_path.parent / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.levels, whole.levels, strict=True))


def test_a_stale_or_damaged_cache_is_refused(tmp_path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match="is stale: made from s, tokenizer and data are now t"):
        write(tmp_path, source="t")
    shard = next(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][shard.name] = 24
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="missing or damaged"):
        CodeSet.open(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match="unfinished cache of another tokenizer"):
        write(tmp_path, source="t")


def test_statistics_are_those_of_all_tokens_of_all_variants_and_levels(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SHARD_SAMPLES", 10)
    specs = (LevelSpec(1, (1, 1), 2), LevelSpec(4, (2, 2), 2))
    levels = [
        torch.randn(25, 2, spec.num_tokens, 2, generator=torch.Generator().manual_seed(k)) * 3 + 5
        for k, spec in enumerate(specs)
    ]

    def encode_vectors(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        variants = [TokenPyramid(tuple(level[start:stop, v] for level in levels), specs) for v in range(2)]
        return variants, torch.zeros(stop - start, dtype=torch.int64)

    statistics = write(tmp_path, encoder=encode_vectors).statistics()
    tokens = torch.cat([level.reshape(-1, 2) for level in levels]).double()
    assert statistics.mean == pytest.approx(tokens.mean(0).tolist())
    assert statistics.std == pytest.approx(tokens.std(0).tolist())
    with pytest.raises(ValueError, match="latent statistics need continuous levels"):
        write(tmp_path / "ids").statistics()
