"""Classes as conditions: their embedding, alone or as paths of a hierarchy, and the checks of labels.

Letters: `b` batch, `l` levels of a class hierarchy, `d` channels of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hiergen.generators.conditioning.class_hierarchy import ABSENT, OPEN, ClassHierarchy
from hiergen.generators.guidance import GuidedAgainst
from hiergen.nn.constants import Constants
from hiergen.seeding import Rng, draw_uniform


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


def count_conditions(table: nn.Module | None, num_classes: int) -> int:
    """Return how many conditions a caller can name by a number: the classes, or all nodes of a hierarchy."""
    return len(table.hierarchy.nodes) if isinstance(table, ClassPathEmbedding) else num_classes


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
