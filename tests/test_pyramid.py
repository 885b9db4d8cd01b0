from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json, specs_to_json

DISCRETE = (LevelSpec(1, None, 8, 16), LevelSpec(2, None, 8, 16), LevelSpec(4, (2, 2), 8, 16))
CONTINUOUS = (LevelSpec(1, (1, 1), 3), LevelSpec(4, (2, 2), 3))


def ids(batch: int = 3) -> TokenPyramid:
    return TokenPyramid(tuple(torch.randint(16, (batch, spec.num_tokens)) for spec in DISCRETE), DISCRETE)


def tokens(batch: int = 3) -> TokenPyramid:
    return TokenPyramid(tuple(torch.randn(batch, spec.num_tokens, 3) for spec in CONTINUOUS), CONTINUOUS)


@pytest.mark.parametrize("make", [ids, tokens])
def test_split_undoes_concat(make) -> None:
    pyramid = make()
    back = TokenPyramid.split(pyramid.concat(), pyramid.specs)
    assert back.specs == pyramid.specs
    assert all(torch.equal(a, b) for a, b in zip(back.levels, pyramid.levels, strict=True))


def test_prefix_keeps_the_coarse_levels_and_splits_like_them() -> None:
    pyramid = ids()
    prefix = pyramid.prefix(2)
    assert prefix.num_tokens == 3
    assert TokenPyramid.split(prefix.concat(), DISCRETE).specs == DISCRETE[:2]
    with pytest.raises(ValueError, match="num_levels is 4, expected 1 to 3"):
        pyramid.prefix(4)


def test_split_refuses_a_sequence_that_ends_inside_a_level() -> None:
    with pytest.raises(ValueError, match=r"5 tokens ends inside a level; levels end at \[1, 3, 7\]"):
        TokenPyramid.split(torch.zeros(1, 5, dtype=torch.int64), DISCRETE)


@pytest.mark.parametrize("make", [ids, tokens])
def test_saved_is_loaded_bit_for_bit(make, tmp_path) -> None:
    pyramid = make()
    pyramid.save(tmp_path / "p.safetensors")
    back = TokenPyramid.load(tmp_path / "p.safetensors")
    assert back.specs == pyramid.specs
    assert all(torch.equal(a, b) for a, b in zip(back.levels, pyramid.levels, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_load_refuses_what_is_no_pyramid(tmp_path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="cannot be read as a token pyramid"):
        TokenPyramid.load(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no token pyramid"):
        TokenPyramid.load(tmp_path / "other.safetensors")


def test_batch_indexing_and_dtype() -> None:
    pyramid = tokens(4)
    assert pyramid[1:3].batch_size == 2
    assert pyramid[torch.tensor([True, False, False, True])].batch_size == 2
    with pytest.raises(TypeError, match="slice"):
        pyramid[0]
    assert pyramid.to(dtype=torch.float64).levels[0].dtype == torch.float64
    assert ids().to(dtype=torch.float64).levels[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("levels", "specs", "message"),
    [
        ((), (), "at least one level"),
        ((torch.zeros(1, 1, dtype=torch.int64),), DISCRETE, "got 1 levels but 3 specs"),
        ((torch.zeros(1, 2, dtype=torch.int64),), DISCRETE[:1], "level 0 holds 2 tokens, its spec says 1"),
        ((torch.zeros(1, 1),), DISCRETE[:1], "dtype torch.float32, expected .* ids"),
        ((torch.zeros(1, 1, 4),), CONTINUOUS[:1], "level 0 has 4 channels, its spec says 3"),
        ((torch.zeros(1, 1),), CONTINUOUS[:1], "floating-point tokens"),
        ((torch.zeros(1, 1, 3), torch.zeros(2, 4, 3)), CONTINUOUS, "level 1 holds 2 samples, level 0 holds 1"),
    ],
)
def test_a_pyramid_that_disagrees_with_its_specs_is_refused(levels, specs, message) -> None:
    with pytest.raises(ValueError, match=message):
        TokenPyramid(levels, specs)


def test_ids_out_of_the_vocabulary_are_named() -> None:
    assert ids().check_ids().batch_size == 3
    with pytest.raises(ValueError, match="level 0 holds ids 16 to 16, expected 0 to 15"):
        TokenPyramid((torch.full((1, 1), 16),), DISCRETE[:1]).check_ids()


def test_specs_survive_json_and_check_themselves() -> None:
    assert specs_from_json(specs_to_json(DISCRETE)) == DISCRETE
    with pytest.raises(ValueError, match="grid"):
        LevelSpec(3, (2, 2))
    with pytest.raises(ValueError, match="num_tokens is 0"):
        LevelSpec(0)
    with pytest.raises(ValueError, match="one sequence"):
        TokenPyramid(
            (torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 4, 3)), (DISCRETE[0], CONTINUOUS[1])
        ).concat()
