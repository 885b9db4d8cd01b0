"""Coarse levels of tokens read the coarse part of a class's path alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.generators.level_ar.model import LevelAR
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

CLASSES = ClassHierarchy.from_names(["wild/ape | flat", "pets/cat | round", "pets/cat | flat", "pets/dog | flat"])
LEVELS = tuple(LevelSpec(count, dim=4, vocab_size=8) for count in (1, 1, 2, 4))
CAT, DOG, APE = (CLASSES.find(name) for name in ("pets/cat | flat", "pets/dog | flat", "wild/ape | flat"))


def make(**options: Any) -> LevelAR:
    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "num_ar_tokens": 2, "num_classes": 4}
    given = {"class_hierarchy": CLASSES.to_json(), "level_conditions": True, **options}
    model = LevelAR(level_specs=specs_to_json(LEVELS), **{**sizes, **given})
    for index, parameter in enumerate(model.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return model.eval()


def same_at(model: LevelAR, labels: list[int]) -> list[bool]:
    """Return whether the logits of two labels agree, of each token."""
    ids = torch.randint(8, (1, 8), generator=torch.Generator().manual_seed(0)).expand(2, -1)
    first, second = model(ids, torch.tensor(labels))
    return [torch.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True)]


def test_coarse_tokens_are_the_same_for_all_classes_of_a_group() -> None:
    model = make()
    assert model._matched.depths == (1, 1, 2, 2)
    assert same_at(model, [CAT, DOG]) == [True] * 2 + [False] * 6
    assert same_at(model, [CAT, CLASSES.find("pets | flat")]) == [True] * 2 + [False] * 6
    # Another group, or attribute, is read from the first token on.
    assert same_at(model, [CAT, APE]) == [False] * 8
    assert same_at(model, [CAT, CLASSES.find("pets/cat | round")]) == [False] * 8
    assert same_at(make(level_conditions=False), [CAT, DOG]) == [False] * 8


def test_generation_reads_what_training_reads(tmp_path: Path) -> None:
    model, labels = make(), torch.tensor([CAT, DOG, APE])
    for options in ({}, {"guidance_scale": 3.0, "guidance_against": "parent"}):
        made = [
            model.generate(labels, model.make_settings(temperature=0.0, use_cache=use_cache, **options)).concat()
            for use_cache in (True, False)
        ]
        assert torch.equal(*made)
    greedy = model.generate(labels, model.make_settings(temperature=0.0)).concat()
    assert torch.equal(model(greedy, labels).argmax(dim=2), greedy)
    model.save_pretrained(tmp_path)
    again = LevelAR.from_pretrained(tmp_path).eval()
    assert torch.equal(again.generate(labels, again.make_settings(temperature=0.0)).concat(), greedy)


def test_every_table_is_trained_and_none_is_new() -> None:
    model = make().train()
    assert list(model.state_dict()) == list(make(level_conditions=False).state_dict())
    pyramid = TokenPyramid.split(torch.zeros(4, 8, dtype=torch.int64), LEVELS)
    model.loss(pyramid, torch.arange(4), rng=torch.Generator().manual_seed(0))["loss"].backward()
    assert all(table.weight.grad.any() for table in model.class_embedding.levels)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="level_conditions is True, expected a class_hierarchy beside it"):
        make(class_hierarchy=None)
    flat = ClassHierarchy.from_names(["a", "b", "c", "d"]).to_json()
    with pytest.raises(
        ValueError, match="level_conditions is True with 4 levels of tokens and 1 of classes, expected two of both"
    ):
        make(class_hierarchy=flat)
