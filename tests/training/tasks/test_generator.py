from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hiergen.data.codes import CodeSet, write_codes
from hiergen.pyramid import LevelSpec, TokenPyramid
from hiergen.registry import create
from hiergen.training.tasks.settings import GeneratorTaskConfig

SPECS = (LevelSpec(4, (2, 2), 2),)
SMALL = {"dim": 8, "depth": 1, "num_heads": 2}


@pytest.fixture
def codes(tmp_path) -> CodeSet:
    tokens = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 7.0]) + 3

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        return [TokenPyramid((tokens[start:stop],), SPECS)], torch.arange(start, stop) % 2

    return write_codes(tmp_path / "codes", encode, num_samples=6, classes=["a", "b"], source="s")


def test_a_generator_gets_the_statistics_of_its_codes_and_keeps_them(codes, tmp_path) -> None:
    config = GeneratorTaskConfig(preset="flow-tiny", codes=str(tmp_path / "codes"), overrides=SMALL)
    generator = config.build().generator
    standardized = generator.standardize(codes.levels[0][:, 0]).flatten(0, 1)
    torch.testing.assert_close(standardized.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardized.std(0), torch.ones(2))
    generator.save_pretrained(tmp_path / "model")
    again = type(generator).from_pretrained(tmp_path / "model")
    assert again.config["latent_mean"] == list(codes.statistics().mean)
    assert again.config["latent_std"] == list(codes.statistics().std)


def test_a_generator_of_several_levels_standardizes_each_by_itself(tmp_path) -> None:
    specs = (LevelSpec(1, (1, 1), 8), LevelSpec(4, (2, 2), 8))
    rng = torch.Generator().manual_seed(0)
    # The coarse level varies a tenth as much, about another mean.
    levels = 0.1 * torch.randn(64, 1, 8, generator=rng) + 5, torch.randn(64, 4, 8, generator=rng)

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        pyramid = TokenPyramid(tuple(level[start:stop] for level in levels), specs)
        return [pyramid], torch.arange(start, stop) % 2

    write_codes(tmp_path / "codes", encode, num_samples=64, classes=["a", "b"], source="s")
    generator = GeneratorTaskConfig(preset="mar-tiny-levels", codes=str(tmp_path / "codes")).build().generator
    generator.save_pretrained(tmp_path / "model")
    again = type(generator).from_pretrained(tmp_path / "model")
    standardized = again.standardize(torch.cat(levels, dim=1))
    for level in (standardized[:, :1], standardized[:, 1:]):
        torch.testing.assert_close(level.flatten(0, 1).mean(0), torch.zeros(8), atol=1e-4, rtol=0)
        torch.testing.assert_close(level.flatten(0, 1).std(0), torch.ones(8), atol=1e-4, rtol=0)
    # What a level generates comes back on the level's own scale.
    torch.testing.assert_close(again.standardize.inverse(standardized[:, :1]), levels[0])


def test_a_generator_of_the_next_scale_gets_the_codebook_of_its_tokenizer(tmp_path) -> None:
    sizes = {"widths": [32], "num_blocks": 1, "code_dim": 4, "vocab_size": 9, "image_size": 2, "sides": [1, 2]}
    tokenizer = create("multiscale-vq-tiny", **sizes)
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        ids = tokenizer.encode(torch.zeros(stop - start, 3, 2, 2))
        return [ids], torch.arange(start, stop) % 2

    write_codes(tmp_path / "codes", encode, num_samples=6, classes=["a", "b"], source="s")
    small = {"dim": 8, "depth": 1, "num_heads": 2}
    config = GeneratorTaskConfig(preset="var-tiny", codes=str(tmp_path / "codes"), overrides=small)
    with pytest.raises(ValueError, match="tokenizer is None, but 'var-tiny' computes its inputs with the codebook"):
        config.build()
    task = dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer")).build()
    assert torch.equal(task.generator.quantizer.codebook, tokenizer.quantizer.codebook)
    assert task.images()["samples"].shape == (2, 3, 2, 2)
    assert config.count_parameters()["generator"] == sum(
        p.numel() for p in task.generator.parameters() if p.requires_grad
    )
    other = dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer"), overrides={**small, "num_filters": 1})
    with pytest.raises(ValueError, match="the tokenizer's quantizer has grids"):
        other.build()


def test_overrides_and_presets_that_scale_go_before_the_statistics(codes, tmp_path) -> None:
    folder = str(tmp_path / "codes")
    given = {"latent_mean": [1.0, 2.0], "latent_std": [3.0, 4.0]}
    task = GeneratorTaskConfig(preset="flow-tiny", codes=folder, overrides={**SMALL, **given}).build()
    assert task.generator.config["latent_mean"] == [1.0, 2.0]
    assert task.generator.config["latent_std"] == [3.0, 4.0]
    sizes = {
        f"{part}_{name}": value
        for part in ("encoder", "decoder")
        for name, value in (("dim", 8), ("depth", 1), ("heads", 2))
    }
    task = GeneratorTaskConfig(
        preset="mar-b", codes=folder, overrides={**sizes, "head_dim": 8, "head_depth": 1}
    ).build()
    assert task.generator.config["latent_multiplier"] == 0.2325
    assert task.generator.config["latent_std"] is None


@pytest.mark.parametrize(
    "given", [{"latent_std": [0.01, 0.7]}, {"latent_multiplier": 0.01}, {"latent_mean": [90.0, 3.0]}]
)
def test_statistics_of_another_tokenizer_are_refused(given, codes, tmp_path) -> None:
    wide = {"latent_mean": list(codes.statistics().mean), "latent_std": list(codes.statistics().std)}
    config = GeneratorTaskConfig(
        preset="flow-tiny", codes=str(tmp_path / "codes"), overrides={**SMALL, **wide, **given}
    )
    with pytest.raises(
        ValueError, match=r"the generator's latent statistics give the tokens of this cache a root mean square"
    ):
        config.build()


def test_the_share_of_random_orders_falls_from_one_to_zero(tmp_path) -> None:
    specs = (LevelSpec(4, (2, 2), dim=2, vocab_size=8),)

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        ids = torch.randint(8, (stop - start, 4), generator=torch.Generator().manual_seed(0))
        return [TokenPyramid((ids,), specs)], torch.arange(start, stop) % 2

    folder = str(tmp_path / "codes")
    write_codes(folder, encode, num_samples=6, classes=["a", "b"], source="s")
    config = GeneratorTaskConfig(preset="rar-tiny", codes=folder, overrides=SMALL, random_until=(100, 300))
    task, shares = config.build(), []
    for samples_seen in (0, 99, 100, 150, 299, 300, 1000):
        task.begin_step(samples_seen)
        shares.append(task.generator.random_share)
    assert shares == [1.0, 1.0, 1.0, 0.75, 0.005, 0.0, 0.0]
    task = dataclasses.replace(config, random_until=(100, 100)).build()
    task.begin_step(99)
    assert task.generator.random_share == 1.0
    task.begin_step(100)
    assert task.generator.random_share == 0.0
    task = dataclasses.replace(config, random_until=None).build()
    task.begin_step(0)
    assert task.generator.random_share == 0.0


def test_random_orders_are_refused_where_there_are_none(codes, tmp_path) -> None:
    config = GeneratorTaskConfig(
        preset="flow-tiny", codes=str(tmp_path / "codes"), overrides=SMALL, random_until=(1, 2)
    )
    with pytest.raises(ValueError, match=r"random_until is \(1, 2\), but a FlowTransformer has no random orders"):
        config.build()
    with pytest.raises(
        ValueError, match=r"random_until is \(2, 1\), expected two numbers of which the second is not less"
    ):
        GeneratorTaskConfig(random_until=(2, 1))


CLASSES = ("food/fruit | flat", "food/drink | flat", "faces/happy | flat", "faces/happy | round")


def _unbalanced(folder: Path, classes: Sequence[str] = CLASSES) -> list[int]:
    """Write codes of which the classes have 1, 1, 3 and 5 samples, and return their labels."""
    labels = [0, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    tokens = torch.randn(10, 4, 2, generator=torch.Generator().manual_seed(0))

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
        return [TokenPyramid((tokens[start:stop],), SPECS)], torch.tensor(labels[start:stop])

    write_codes(folder, encode, num_samples=10, classes=list(classes), source="s")
    return labels


@pytest.mark.parametrize("balance", [0.5, 1.0])
@pytest.mark.parametrize("by", ["names", "table", "classes"])
def test_balance_gives_each_group_its_share_of_visits(balance, by, tmp_path) -> None:
    classes = CLASSES if by == "names" else ("pear", "juice", "grin", "smile")
    labels = torch.tensor(_unbalanced(tmp_path / "codes", classes))
    table = None
    if by == "table":
        table = str(tmp_path / "classes.csv")
        Path(table).write_text("class,group\npear,food\njuice,food\ngrin,faces\nsmile,faces\n")
    config = GeneratorTaskConfig(
        preset="flow-tiny", codes=str(tmp_path / "codes"), overrides=SMALL, balance=balance, class_table=table
    )
    weights = config.build().weights
    found = torch.zeros(4, dtype=torch.float64).index_add(0, labels, weights / weights.sum())
    # The groups have 2 and 8 samples.
    expected = {0.5: [1 / 3, 2 / 3], 1.0: [1 / 2, 1 / 2]}[balance]
    if by != "classes":
        found = found.view(2, 2).sum(1)
    else:
        roots = torch.tensor([1.0, 1.0, 3.0, 5.0]).sqrt()
        expected = {0.5: (roots / roots.sum()).tolist(), 1.0: [1 / 4] * 4}[balance]
    assert found.tolist() == pytest.approx(expected)


def test_without_balance_every_sample_comes_once_per_epoch(tmp_path) -> None:
    _unbalanced(tmp_path / "codes")
    config = GeneratorTaskConfig(preset="flow-tiny", codes=str(tmp_path / "codes"), overrides=SMALL)
    assert config.build().weights is None
    with pytest.raises(ValueError, match="balance"):
        dataclasses.replace(config, balance=1.5)
