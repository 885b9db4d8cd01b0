"""What generators are told to make, and how they learn to do without: conditions, their checks, and dropping them for guidance.

Letters: `b` batch, `l` levels of a class hierarchy, `d` channels of an embedding, `n` tokens of a text, `c` channels of its features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.generators.class_hierarchy import ABSENT, OPEN, ClassHierarchy
from hiergen.generators.guidance import GuidedAgainst
from hiergen.nn.constants import Constants
from hiergen.seeding import Rng, draw_uniform

#: Class labels `(b,)`; or features `(b, n, channels)` of one frozen encoder, or of several in a list.
Condition = Tensor | Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """No condition, for samples without a class.

    Attributes:
        count: Number of samples.
    """

    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class TextCondition:
    """Texts as a frozen encoder of language sees them, one per sample.

    Attributes:
        features: Features of each text's tokens, `(b, n, c)`, as many rows as the longest text has tokens; `hiergen.pretrained.text_encoder` makes them.
        mask: True where a row is a token and False where it is padding, on either side, `(b, n)`.

    Raises:
        ValueError: If the shapes do not fit together.
    """

    features: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        given, of_mask = tuple(self.features.shape), tuple(self.mask.shape)
        if len(given) != 3 or of_mask != given[:2]:
            raise ValueError(
                f"features have shape {given} and mask {of_mask}, expected (texts, tokens, channels) and (texts, tokens)"
            )

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> TextCondition:
        return TextCondition(self.features[rows], self.mask[rows])

    def to(self, device: torch.device) -> TextCondition:
        """Return the texts on a device."""
        return TextCondition(self.features.to(device), self.mask.to(device))

    def aligned(self, num_tokens: int) -> TextCondition:
        """Return the same texts in `num_tokens` rows that end with the last token of each: padding in front, its features zero.

        Raises:
            ValueError: If there are more rows than that.
        """
        missing = num_tokens - self.features.shape[1]
        if missing < 0:
            raise ValueError(
                f"the texts have {self.features.shape[1]} rows of features, this generator reads {num_tokens}: cut them"
            )
        # A stable sort moves the padding to the front and keeps the order of the tokens.
        order = self.mask.int().argsort(dim=1, stable=True)
        mask = F.pad(self.mask.gather(1, order), (missing, 0))
        features = F.pad(self.features.gather(1, order[..., None].expand_as(self.features)), (0, 0, missing, 0))
        return TextCondition(features * mask[..., None], mask)


class TextPrefix(nn.Module):
    """The embedding of a text as rows in front of the tokens: two linear layers, and features that stand for no text.

    Takes the place of `nn.Embedding` for labels where a generator is conditioned on a `TextCondition`.

    Args:
        num_tokens: Number of rows; shorter texts are padded in front.
        channels: Channels of the features.
        dim: Channels of the embeddings.

    Source:
        LlamaGen, arXiv:2406.06525, whose features for no text are drawn once and never trained.
    """

    def __init__(self, num_tokens: int, channels: int, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, dim, bias=False)
        self.fc2 = nn.Linear(dim, dim, bias=False)
        self.register_buffer("null_features", torch.randn(num_tokens, channels) / channels**0.5)

    null_features: Tensor

    @property
    def num_tokens(self) -> int:
        """Number of rows."""
        return len(self.null_features)

    def forward(self, condition: TextCondition) -> Float[Tensor, "b n d"]:
        """Return the embeddings of texts that are `aligned`."""
        features = condition.features.to(self.fc1.weight.dtype)
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))

    def resolve(self, condition: Any, device: torch.device) -> TextCondition:
        """Return checked and aligned texts on a device; those of an `Unconditional` are rows of no text.

        Raises:
            TypeError: If the condition is no text.
            ValueError: If the features are of another encoder, or too many.
        """
        if isinstance(condition, Unconditional):
            features = self.null_features.to(device).expand(condition.count, -1, -1)
            return TextCondition(features, features.new_ones(features.shape[:2], dtype=torch.bool))
        check_kind(condition, self)
        channels = self.null_features.shape[1]
        if condition.features.shape[2] != channels:
            raise ValueError(f"the texts have features of {condition.features.shape[2]} channels, expected {channels}")
        return condition.to(device).aligned(self.num_tokens)

    def without_text(self, condition: TextCondition, dropped: Bool[Tensor, " b"] | None = None) -> TextCondition:
        """Return aligned texts with features of no text, in all samples or those that are `dropped`; each keeps its mask."""
        null = self.null_features.to(condition.features)
        if dropped is not None:
            null = torch.where(dropped[:, None, None], null, condition.features)
        return TextCondition(null.expand_as(condition.features), condition.mask)


class ClassPathEmbedding(nn.Module):
    """The embedding of a class as a path: the sum of one row per level of a `ClassHierarchy`.

    Takes the place of `nn.Embedding` for labels; conditions are numbers of nodes `(b,)`, of which the first are the labels, or paths
    `(b, l)` as `drop` returns them. Each level's table has two rows beyond its classes: for what a class does not have at that level, and
    for what the condition leaves open. Tables below the first level of the tree start at 0, so that training starts coarse.

    Args:
        hierarchy: The classes.
        dim: Channels.

    Source:
        Ours, after the prompts of TransHP, arXiv:2304.06385, which are not needed where the class is given.
    """

    def __init__(self, hierarchy: ClassHierarchy, dim: int) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        sizes = [len(level.names) for level in hierarchy.levels]
        self.levels = nn.ModuleList(nn.Embedding(size + 2, dim) for size in sizes)
        places = [
            [{ABSENT: size, OPEN: size + 1}.get(number, number) for number, size in zip(path, sizes, strict=True)]
            for path in hierarchy.nodes
        ]
        self._constants = Constants(
            paths=torch.tensor(places, device="cpu"),
            parents=torch.tensor(hierarchy.parents, device="cpu"),
            open=torch.tensor([size + 1 for size in sizes], device="cpu"),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the coarsest level and the attributes from N(0, 0.02), and set the finer levels of the tree to 0."""
        for index, table in enumerate(self.levels):
            is_finer = 0 < index < self.hierarchy.depth
            weight = cast(nn.Embedding, table).weight
            nn.init.zeros_(weight) if is_finer else nn.init.normal_(weight, std=0.02)

    def forward(self, condition: Int[Tensor, "b ..."]) -> Float[Tensor, "b d"]:
        """Return the embeddings of nodes `(b,)` or of paths `(b, l)`."""
        paths = self.paths(condition)
        return torch.stack([table(paths[:, index]) for index, table in enumerate(self.levels)]).sum(dim=0)

    def paths(self, condition: Int[Tensor, "b ..."]) -> Int[Tensor, "b l"]:
        """Return the row of every level's table."""
        return self._constants.on(condition.device)["paths"][condition] if condition.ndim == 1 else condition

    def parents(self, condition: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Return the parents of nodes (`ClassHierarchy.parents`)."""
        return self._constants.on(condition.device)["parents"][condition]

    def drop(self, condition: Int[Tensor, " b"], probability: float, *, rng: Rng | None) -> Int[Tensor, "b l"]:
        """Return paths of which levels are left open at random: with `probability` each, a level of the tree with all finer ones, and an
        attribute by itself. One uniform number per sample and level is drawn."""
        paths = self.paths(condition)
        is_open = draw_uniform(tuple(paths.shape), rng=rng, device=paths.device) < probability
        tree = is_open[:, : self.hierarchy.depth].long().cumsum(dim=1) > 0
        is_open = torch.cat((tree, is_open[:, self.hierarchy.depth :]), dim=1)
        return torch.where(is_open, self._constants.on(paths.device)["open"], paths)


def class_table(num_classes: int, dim: int, hierarchy: Mapping[str, Any] | None) -> nn.Embedding | ClassPathEmbedding:
    """Return the embedding of a generator's classes, with one more row, number `num_classes`, that stands for no class.

    Args:
        num_classes: Number of classes.
        dim: Channels.
        hierarchy: A `ClassHierarchy` as JSON; None gives a row to each class.

    Raises:
        ValueError: If the hierarchy is of another number of classes, or damaged.
    """
    classes = read_hierarchy(hierarchy, num_classes)
    return nn.Embedding(num_classes + 1, dim) if classes is None else ClassPathEmbedding(classes, dim)


#: What embeds the condition of a generator: labels, paths of a class hierarchy, or texts.
ConditionTable = nn.Embedding | ClassPathEmbedding | TextPrefix


def condition_table(
    num_classes: int | None, text_shape: Sequence[int] | None, dim: int, hierarchy: Mapping[str, Any] | None
) -> ConditionTable:
    """Return the embedding of a generator's classes, or of texts.

    Args:
        num_classes: Number of classes; None for texts.
        text_shape: Rows and channels of the features of texts; None for classes.
        dim: Channels.
        hierarchy: A `ClassHierarchy` as JSON; None gives a row to each class.

    Raises:
        ValueError: If both or neither are given.
    """
    if (num_classes is None) == (text_shape is None):
        raise ValueError(f"num_classes is {num_classes} and text_shape is {text_shape}, expected one of them")
    if text_shape is not None:
        return TextPrefix(text_shape[0], text_shape[1], dim)
    assert num_classes is not None
    return class_table(num_classes, dim, hierarchy)


def read_hierarchy(hierarchy: Mapping[str, Any] | None, num_classes: int | None) -> ClassHierarchy | None:
    """Return the hierarchy of a generator's config, None for None.

    Raises:
        ValueError: If it is damaged, or of another number of classes.
    """
    if hierarchy is None:
        return None
    found = ClassHierarchy.from_json(hierarchy)
    if len(found.classes) != num_classes:
        raise ValueError(f"class_hierarchy has {len(found.classes)} classes, expected num_classes, {num_classes}")
    return found


#: Labels, or texts: what comes in is what goes out.
C = TypeVar("C", bound=Tensor | TextCondition)


def count_conditions(table: nn.Module | None, num_classes: int) -> int:
    """Return how many conditions a caller can name by a number: the classes, or all nodes of a hierarchy."""
    return len(table.hierarchy.nodes) if isinstance(table, ClassPathEmbedding) else num_classes


def resolve_labels(
    condition: C | Unconditional,
    num_classes: int | None,
    dropout: float,
    device: torch.device,
    table: nn.Module | None = None,
) -> C:
    """Return checked labels, or aligned texts, on `device`; labels of an `Unconditional` are `num_classes`, which stands for no class.

    Args:
        condition: Labels `(b,)`, or texts where the table is a `TextPrefix`, or no condition.
        num_classes: Number of classes.
        dropout: Share of the labels that were dropped in training.
        device: Device of the generator.
        table: The generator's embedding of its condition. Of a hierarchy, any node is a label.

    Raises:
        ValueError: If a label is out of range, or no label was ever dropped in training, so that "no class" means nothing.
        TypeError: If labels are not int64, or texts are no `TextCondition`.
    """
    if isinstance(condition, Unconditional) and dropout <= 0:
        expected = "texts" if isinstance(table, TextPrefix) else "labels"
        raise ValueError(f"the condition is {condition}, expected {expected}: none was dropped in training")
    if isinstance(table, TextPrefix):
        return cast(C, table.resolve(condition, device))
    assert num_classes is not None
    if not isinstance(condition, Unconditional):
        check_kind(condition, table)
        check_labels(cast(Tensor, condition), count_conditions(table, num_classes))
        return cast(C, condition.to(device))
    return cast(C, torch.full((condition.count,), num_classes, dtype=torch.int64, device=device))


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check class labels: int64 `(b,)`, each 0 to `num_classes - 1`.

    Raises:
        ValueError: If the shape or a label is out of range (a CPU check: call it outside loops).
        TypeError: If they are not int64.
    """
    if labels.dtype != torch.int64:
        raise TypeError(f"class labels have dtype {labels.dtype}, expected int64")
    if labels.ndim != 1:
        raise ValueError(f"class labels have shape {tuple(labels.shape)}, expected (b,)")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"class labels span {int(labels.min())} to {int(labels.max())}, expected 0 to {num_classes - 1}"
        )


def check_kind(condition: Any, table: nn.Module | None) -> None:
    """Check that a condition is of texts where a generator was trained on them, and of labels where it was not.

    Raises:
        TypeError: If it is of the other kind.
    """
    if isinstance(condition, TextCondition) != isinstance(table, TextPrefix):
        trained = "texts: expected a TextCondition" if isinstance(table, TextPrefix) else "classes: expected labels"
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
        return cast(C, cast(TextPrefix, table).without_text(labels, dropped))
    assert null_label is not None
    kept: Tensor = labels.masked_fill(draw_dropped(len(labels), probability, rng=rng, device=labels.device), null_label)
    return cast(C, table.drop(kept, probability, rng=rng) if isinstance(table, ClassPathEmbedding) else kept)


def unguided_labels(
    labels: Int[Tensor, " b"], null_label: int, against: GuidedAgainst, table: nn.Module | None
) -> Int[Tensor, " b"]:
    """Return what guidance moves away from: "no label" for all, or the parent of each.

    Raises:
        ValueError: If the parent is asked for, but the classes have no hierarchy.
    """
    if against == "null":
        return torch.full_like(labels, null_label)
    if not isinstance(table, ClassPathEmbedding):
        raise ValueError("guidance_against is 'parent', but this generator has no class hierarchy: leave it at 'null'")
    return table.parents(labels)


def with_unguided_labels(labels: C, null_label: int | None, against: GuidedAgainst, table: nn.Module) -> C:
    """Return the labels and behind them what guidance moves away from (`unguided_labels`): what one pass for both reads.

    Raises:
        ValueError: If the parent is asked for, but there is none.
    """
    if isinstance(labels, TextCondition):
        if against != "null":
            raise ValueError(f"guidance_against is {against!r}, but a text has no parent: leave it at 'null'")
        null = cast(TextPrefix, table).without_text(labels)
        return cast(C, TextCondition(torch.cat((labels.features, null.features)), labels.mask.repeat(2, 1)))
    assert null_label is not None
    return cast(C, torch.cat((labels, unguided_labels(labels, null_label, against, table))))
