"""Every generator of classes takes a hierarchy: any node as a condition, guidance against the parent, and saves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hiergen.generators.conditioning import ClassPathEmbedding
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.generators.flow.model import FlowTransformer
from hiergen.generators.level_ar.model import LevelAR
from hiergen.generators.masked.ids.model import MaskedIds
from hiergen.generators.masked.model import MaskedAR
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.random_order.model import RandomOrderAR
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_to_json

CLASSES = ClassHierarchy.from_names(["wild/ape | flat", "pets/cat | round", "pets/cat | flat", "pets/dog | flat"])
MAP = (LevelSpec(4, (2, 2), 3),)
IDS = (LevelSpec(1, dim=4, vocab_size=8), LevelSpec(1, dim=4, vocab_size=8))
MAPS = (LevelSpec(1, (1, 1), 4, 8), LevelSpec(4, (2, 2), 4, 8))
SMALL = {"dim": 16, "depth": 2, "num_heads": 2}
BLOCKS = {
    "encoder_dim": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}
KINDS: dict[str, tuple[type[Any], tuple[LevelSpec, ...], dict[str, Any], dict[str, Any]]] = {
    "flow": (FlowTransformer, MAP, SMALL, {"num_steps": 2}),
    "level_ar": (LevelAR, IDS, {**SMALL, "num_ar_tokens": 2}, {"temperature": 0.0}),
    "next_scale": (NextScaleAR, MAPS, {**SMALL, "drop_path": 0.0}, {"temperature": 0.0}),
    "masked_ids": (MaskedIds, MAPS, {**SMALL, "dropout": 0.0}, {"num_steps": 2}),
    "masked_ids_with_skips": (MaskedIds, MAPS, {**SMALL, "blocks": "skip", "dropout": 0.0}, {"num_steps": 2}),
    "random_order": (RandomOrderAR, MAPS, {**SMALL, "dropout": 0.0}, {"temperature": 0.0}),
    "masked": (
        MaskedAR,
        MAP,
        {**BLOCKS, "num_buffer": 1, "head_dim": 8, "head_depth": 1},
        {"num_steps": 2, "head_steps": 2},
    ),
}


def make(kind: str, *, hierarchy: ClassHierarchy | None = CLASSES) -> Any:
    model, specs, sizes, _ = KINDS[kind]
    values = None if hierarchy is None else hierarchy.to_json()
    made = model(level_specs=specs_to_json(specs), num_classes=4, class_hierarchy=values, **sizes)
    for index, parameter in enumerate(made.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return made.eval()


def generate(model: Any, kind: str, labels: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Return what is made of each label with the same draws, so that only the condition tells them apart; and the logits of ids."""
    chosen = model.make_settings(**KINDS[kind][3], **settings)
    rows = []
    for label in labels:
        seen: list[torch.Tensor] = []
        if model.specs[0].is_discrete:
            hook = model.head.register_forward_hook(
                lambda head, given, logits, seen=seen: seen.append(logits.flatten())
            )
        made = model.generate(label[None], chosen, rng=torch.Generator().manual_seed(0)).concat()
        if model.specs[0].is_discrete:
            hook.remove()
        rows.append(torch.cat((made.flatten().float(), *seen)))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_any_node_is_a_condition(kind: str) -> None:
    model = make(kind)
    labels = torch.tensor([CLASSES.find(name) for name in ("pets/cat | flat", "pets", "flat")])
    made = generate(model, kind, labels)
    assert not torch.equal(made[0], made[1])
    assert not torch.equal(made[1], made[2])
    with pytest.raises(ValueError, match=f"expected 0 to {len(CLASSES.nodes) - 1}"):
        generate(model, kind, torch.tensor([len(CLASSES.nodes)]))
    with pytest.raises(ValueError, match="expected 0 to 3"):
        generate(make(kind, hierarchy=None), kind, torch.tensor([4]))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_against_the_parent(kind: str) -> None:
    model = make(kind)
    root = torch.tensor([CLASSES.find("pets")])
    # The parent of a first level is the open node, so that both kinds of guidance are one.
    both = [generate(model, kind, root, guidance_scale=3.0, guidance_against=name) for name in ("null", "parent")]
    assert torch.equal(*both)
    leaf = torch.tensor([CLASSES.find("pets/cat | flat")])
    both = [generate(model, kind, leaf, guidance_scale=3.0, guidance_against=name) for name in ("null", "parent")]
    assert not torch.equal(*both)
    with pytest.raises(ValueError, match="guidance_against is 'parent', but this generator has no class hierarchy"):
        generate(make(kind, hierarchy=None), kind, torch.tensor([1]), guidance_scale=3.0, guidance_against="parent")


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_level_and_the_model_is_saved_with_its_hierarchy(kind: str, tmp_path) -> None:
    model = make(kind).train()
    specs = KINDS[kind][1]
    levels = [torch.randn(64, 4, 3)] if specs is MAP else [torch.randint(8, (64, spec.num_tokens)) for spec in specs]
    labels = torch.arange(64) % 4
    table, seen = next(module for module in model.modules() if isinstance(module, ClassPathEmbedding)), []
    hook = table.register_forward_pre_hook(lambda table, given: seen.append(table.paths(given[0])))
    model.loss(TokenPyramid(tuple(levels), specs), labels, rng=torch.Generator().manual_seed(0))["loss"].backward()
    hook.remove()
    is_open = torch.cat(seen) == torch.tensor([len(level.weight) - 1 for level in table.levels])
    # A known group of which the class is left open, which dropping whole labels never makes.
    assert (~is_open[:, 0] & is_open[:, 1]).any()
    for level in table.levels:
        # All classes, and the row of what is left open.
        assert bool(level.weight.grad.abs().sum(dim=1)[[*range(len(level.weight) - 2), -1]].all())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert ClassHierarchy.from_json(loaded.config["class_hierarchy"]) == CLASSES
    torch.testing.assert_close(generate(loaded, kind, labels[:2]), generate(model.eval(), kind, labels[:2]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_knows_no_fine_class(kind: str) -> None:
    model, specs, sizes, _ = KINDS[kind]
    made = model(level_specs=specs_to_json(specs), num_classes=4, class_hierarchy=CLASSES.to_json(), **sizes)
    table = next(module for module in made.modules() if isinstance(module, ClassPathEmbedding))
    # Two levels of the tree, and an attribute.
    assert [bool(level.weight.any()) for level in table.levels] == [True, False, True]
