from __future__ import annotations

import pytest
import torch

from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    TextCondition,
    TextPrefix,
    Unconditional,
    check_labels,
    class_table,
    condition_table,
    draw_dropped,
    drop_labels,
    resolve_labels,
    unguided_labels,
)
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy

LABELS = torch.tensor([3, 0, 2, 1])
CLASSES = ClassHierarchy.from_names(["wild/ape | flat", "pets/cat | round", "pets/cat | flat", "pets/dog | flat"])


@pytest.fixture
def table() -> ClassPathEmbedding:
    table = ClassPathEmbedding(CLASSES, 4)
    for level in table.levels:
        torch.nn.init.normal_(level.weight, generator=torch.Generator().manual_seed(0))
    return table


def test_a_path_is_embedded_as_the_sum_of_its_levels(table) -> None:
    group, pet, style = (level.weight for level in table.levels)
    assert [len(level.weight) for level in table.levels] == [2 + 2, 3 + 2, 2 + 2]
    asked = torch.tensor([CLASSES.find(name) for name in ("pets/cat | flat", "pets", "flat", "")])
    expected = torch.stack(
        [
            group[1] + pet[1] + style[0],
            group[1] + pet[4] + style[3],
            group[3] + pet[4] + style[0],
            group[3] + pet[4] + style[3],
        ]
    )
    assert torch.equal(table(asked), expected)
    assert torch.equal(table(table.paths(asked)), expected)


def test_finer_levels_start_at_zero() -> None:
    table = class_table(4, 8, CLASSES.to_json())
    assert [bool(level.weight.any()) for level in table.levels] == [True, False, True]
    assert isinstance(class_table(4, 8, None), torch.nn.Embedding)
    with pytest.raises(ValueError, match="class_hierarchy has 4 classes, expected num_classes, 5"):
        class_table(5, 8, CLASSES.to_json())


def test_paths_are_cut_from_the_fine_end_and_attributes_by_themselves(table) -> None:
    labels = torch.full((4000,), 3)
    paths = table.drop(labels, 0.25, rng=torch.Generator().manual_seed(0))
    group, pet, style = (paths == torch.tensor([3, 4, 3])).T
    assert not bool((group & ~pet).any())
    shares = [float(x.float().mean()) for x in (group, pet, style, style & ~pet)]
    assert shares == pytest.approx([0.25, 1 - 0.75**2, 0.25, 0.25 * 0.75**2], abs=0.03)
    assert torch.equal(paths[~pet & ~style], table.paths(labels)[~pet & ~style])
    dropped = drop_labels(labels, 4, 0.25, table, rng=torch.Generator().manual_seed(0))
    null = (dropped == torch.tensor([3, 4, 3])).all(dim=1)
    assert float(null.float().mean()) == pytest.approx(0.25 + 0.75 * 0.25 * 0.25, abs=0.03)


def test_any_node_is_a_label_of_a_hierarchy(table) -> None:
    nodes = torch.tensor([0, CLASSES.null, len(CLASSES.nodes) - 1])
    assert torch.equal(resolve_labels(nodes, 4, 0.1, torch.device("cpu"), table), nodes)
    assert resolve_labels(Unconditional(2), 4, 0.1, torch.device("cpu"), table).tolist() == [4, 4]
    with pytest.raises(ValueError, match=f"expected 0 to {len(CLASSES.nodes) - 1}"):
        resolve_labels(nodes + 1, 4, 0.1, torch.device("cpu"), table)


def test_labels_are_dropped_by_one_uniform_number_each() -> None:
    wanted = torch.rand(4, generator=torch.Generator().manual_seed(1)) < 0.5
    assert 0 < int(wanted.sum()) < 4
    dropped = draw_dropped(4, 0.5, rng=torch.Generator().manual_seed(1), device=torch.device("cpu"))
    assert torch.equal(dropped, wanted)
    labels = drop_labels(LABELS, 9, 0.5, rng=torch.Generator().manual_seed(1))
    assert torch.equal(labels, torch.where(wanted, 9, LABELS))


def test_nothing_is_drawn_where_nothing_can_be_dropped() -> None:
    rng = torch.Generator().manual_seed(1)
    before = rng.get_state()
    assert torch.equal(drop_labels(LABELS, 9, 0.0, rng=rng), LABELS)
    assert torch.equal(rng.get_state(), before)


def test_what_guidance_moves_away_from() -> None:
    assert unguided_labels(LABELS, 9, "null", None).tolist() == [9, 9, 9, 9]
    with pytest.raises(ValueError, match="guidance_against is 'parent', but this generator has no class hierarchy"):
        unguided_labels(LABELS, 9, "parent", torch.nn.Embedding(10, 4))
    names = [CLASSES.names[node] for node in unguided_labels(LABELS, 4, "parent", ClassPathEmbedding(CLASSES, 4))]
    assert names == ["pets | flat", "wild | flat", "pets | flat", "pets | round"]


def test_refusals_of_labels() -> None:
    check_labels(LABELS, 4)
    check_labels(LABELS[:0], 4)
    with pytest.raises(ValueError, match="class labels span 0 to 3, expected 0 to 2"):
        check_labels(LABELS, 3)
    with pytest.raises(ValueError, match=r"class labels have shape \(1, 4\), expected \(b,\)"):
        check_labels(LABELS[None], 4)
    with pytest.raises(TypeError, match=r"class labels have dtype torch\.int32, expected int64"):
        check_labels(LABELS.int(), 4)


def test_texts_are_aligned_to_their_last_token_whichever_side_is_padded() -> None:
    features = torch.arange(1.0, 9.0).view(2, 4, 1)
    behind = TextCondition(features, torch.tensor([[True, True, False, False], [True, True, True, True]]))
    aligned = behind.aligned(5)
    assert aligned.features[..., 0].tolist() == [[0, 0, 0, 1, 2], [0, 5, 6, 7, 8]]
    assert aligned.mask.tolist() == [[False, False, False, True, True], [False, True, True, True, True]]
    again = aligned.aligned(5)
    assert torch.equal(again.features, aligned.features)
    assert torch.equal(again.mask, aligned.mask)
    assert len(behind[1:]) == 1
    with pytest.raises(
        ValueError, match=r"features have shape \(2, 4, 1\) and mask \(2, 3\), expected \(texts, tokens"
    ):
        TextCondition(features, torch.ones(2, 3) > 0)


def test_a_generator_is_of_classes_or_of_texts() -> None:
    text = TextCondition(torch.zeros(1, 2, 3), torch.ones(1, 2) > 0)
    assert isinstance(condition_table(TextPrefix, 4, None, [5, 3], None), TextPrefix)
    for classes, shape in ((None, None), (4, [5, 3])):
        with pytest.raises(ValueError, match=r"num_classes is .* and text_shape is .*, expected one of them"):
            condition_table(TextPrefix, 4, classes, shape, None)
    with pytest.raises(TypeError, match="the condition is a TextCondition, this generator was trained on classes"):
        resolve_labels(text, 4, 0.1, torch.device("cpu"), class_table(4, 8, None))
