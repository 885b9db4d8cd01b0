"""How a generator takes its condition, of whatever kind: embedded, checked, dropped in training, and stacked with what guidance moves away from.

Letters: `b` batch, `d` channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.generators.conditioning.classes import (
    ClassPathEmbedding,
    check_labels,
    class_table,
    count_conditions,
    unguided_labels,
)
from hiergen.generators.conditioning.kinds import TextCondition, Unconditional
from hiergen.generators.conditioning.texts import TextPrefix, TextRows, TextTable, check_text_entries
from hiergen.generators.guidance import GuidedAgainst
from hiergen.seeding import Rng, draw_uniform

#: What embeds the condition of a generator: labels, paths of a class hierarchy, or texts.
ConditionTable = nn.Embedding | ClassPathEmbedding | TextTable


def condition_table(
    kind: type[TextPrefix] | type[TextRows],
    dim: int,
    num_classes: int | None,
    text_shape: Sequence[int] | None,
    hierarchy: Mapping[str, Any] | None,
    encoder: Mapping[str, Any] | None = None,
) -> ConditionTable:
    """Return the embedding of a generator's classes, or of texts.

    Args:
        kind: How the generator reads texts.
        dim: Channels.
        num_classes: Number of classes; None for texts.
        text_shape: Rows and channels of the features of texts; None for classes.
        hierarchy: A `ClassHierarchy` as JSON; None gives a row to each class.
        encoder: What makes the features of texts, see `TextTable`.

    Raises:
        ValueError: If both or neither are given, or an entry is out of range.
    """
    check_text_entries(num_classes, text_shape, encoder)
    if text_shape is not None:
        return kind(text_shape[0], text_shape[1], dim, encoder)
    assert num_classes is not None
    return class_table(num_classes, dim, hierarchy)


def embed_condition(
    table: nn.Module, condition: Tensor | TextCondition
) -> tuple[Float[Tensor, "b d"], dict[str, Tensor]]:
    """Return the one vector of a condition that modulates blocks, and what the blocks take besides: for texts `rows`, `(b, n, d)`."""
    if not isinstance(table, TextRows):
        return table(condition), {}
    assert isinstance(condition, TextCondition)
    rows = table.rows(condition)
    return table(rows, condition.mask), {"rows": rows}


#: Labels, or texts: what comes in is what goes out.
C = TypeVar("C", bound=Tensor | TextCondition)


def resolve_labels(
    condition: C | Unconditional,
    num_classes: int | None,
    dropout: float,
    device: torch.device,
    table: nn.Module | None = None,
) -> C:
    """Return checked labels, or aligned texts, on `device`; labels of an `Unconditional` are `num_classes`, which stands for no class.

    Args:
        condition: Labels `(b,)`, or texts where the table is a `TextTable`, or no condition.
        num_classes: Number of classes.
        dropout: Share of the labels that were dropped in training.
        device: Device of the generator.
        table: The generator's embedding of its condition. Of a hierarchy, any node is a label.

    Raises:
        ValueError: If a label is out of range, or no label was ever dropped in training, so that "no class" means nothing.
        TypeError: If labels are not int64, or texts are no `TextCondition`.
    """
    if isinstance(condition, Unconditional) and dropout <= 0:
        expected = "texts" if isinstance(table, TextTable) else "labels"
        raise ValueError(f"the condition is {condition}, expected {expected}: none was dropped in training")
    if isinstance(table, TextTable):
        return cast(C, table.resolve(condition, device))
    assert num_classes is not None
    if not isinstance(condition, Unconditional):
        check_kind(condition, table)
        check_labels(cast(Tensor, condition), count_conditions(table, num_classes))
        return cast(C, condition.to(device))
    return cast(C, torch.full((condition.count,), num_classes, dtype=torch.int64, device=device))


def resolve_texts(condition: C, table: nn.Module) -> C:
    """Return texts encoded and aligned, where the generator reads texts; labels as they are.

    Raises:
        TypeError: If the condition is of the other kind.
        ValueError: If the features are of another encoder, or too many.
    """
    check_kind(condition, table)
    return (
        cast(C, table.resolve(condition, next(table.parameters()).device))
        if isinstance(table, TextTable)
        else condition
    )


def check_kind(condition: Any, table: nn.Module | None) -> None:
    """Check that a condition is of texts where a generator was trained on them, and of labels where it was not.

    Raises:
        TypeError: If it is of the other kind.
    """
    if isinstance(condition, TextCondition) != isinstance(table, TextTable):
        trained = "texts: expected a TextCondition" if isinstance(table, TextTable) else "classes: expected labels"
        raise TypeError(f"the condition is a {type(condition).__name__}, this generator was trained on {trained}")


def check_condition(condition: Tensor | TextCondition, batch: int, table: nn.Module) -> None:
    """Check that there is one label per sample, or with a hierarchy one node or path, or one text.

    Raises:
        ValueError: If there are more or fewer, or paths without a hierarchy.
        TypeError: If there are labels in place of texts, or texts in place of labels.
    """
    check_kind(condition, table)
    if isinstance(condition, TextCondition):
        if len(condition) != batch:
            raise ValueError(f"condition holds {len(condition)} texts, expected {batch}, one per sample")
        return
    given = condition.shape[:1] if isinstance(table, ClassPathEmbedding) else condition.shape
    if given != (batch,):
        raise ValueError(f"condition has shape {tuple(condition.shape)}, expected ({batch},), one per sample")


def draw_dropped(batch: int, probability: float, *, rng: Rng | None, device: torch.device) -> Bool[Tensor, " b"]:
    """Return which samples of a training step lose their condition: one uniform number per sample is drawn and compared."""
    return draw_uniform((batch,), rng=rng, device=device) < probability


def drop_labels(
    labels: C,
    null_label: int | None,
    probability: float,
    table: nn.Module | None = None,
    *,
    rng: Rng | None,
) -> C:
    """Return the labels, each replaced by "no label" with some probability; at probability 0 nothing is drawn. For aligned texts the same.

    With a hierarchy, paths are returned, of which levels are left open besides (`ClassPathEmbedding.drop`).
    """
    if probability <= 0:
        return labels
    if isinstance(labels, TextCondition):
        dropped = draw_dropped(len(labels), probability, rng=rng, device=labels.features.device)
        return cast(C, cast(TextTable, table).without_text(labels, dropped))
    assert null_label is not None
    kept: Tensor = labels.masked_fill(draw_dropped(len(labels), probability, rng=rng, device=labels.device), null_label)
    return cast(C, table.drop(kept, probability, rng=rng) if isinstance(table, ClassPathEmbedding) else kept)


def with_unguided_labels(labels: C, null_label: int | None, against: GuidedAgainst, table: nn.Module) -> C:
    """Return the labels and behind them what guidance moves away from (`unguided_labels`; of texts the negative ones, or no text): what one pass for both reads.

    Raises:
        ValueError: If the parent is asked for, but there is none.
    """
    if isinstance(labels, TextCondition):
        if against != "null":
            raise ValueError(f"guidance_against is {against!r}, but a text has no parent: leave it at 'null'")
        null = cast(TextTable, table).without_text(labels) if labels.negative is None else labels.negative
        features, mask = torch.cat((labels.features, null.features)), torch.cat((labels.mask, null.mask))
        return cast(C, TextCondition(features, mask))
    assert null_label is not None
    return cast(C, torch.cat((labels, unguided_labels(labels, null_label, against, table))))
