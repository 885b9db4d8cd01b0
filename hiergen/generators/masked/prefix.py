"""The condition as rows in front of the tokens: class embeddings, projected image features, tokens of a coarser stage.

Letters: `b` batch, `p` rows of the prefix, `d` width of the encoder, `c` channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hiergen.generators.conditioning import (
    ClassPathEmbedding,
    Condition,
    TextCondition,
    TextRows,
    check_kind,
    check_labels,
    count_conditions,
    read_hierarchy,
)
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.generators.masked.diffusion_head import TimeEmbedding
from hiergen.nn.initialization import xavier_linears


def augment_low_res(
    tokens: Float[Tensor, "b n c"], time: Float[Tensor, " b"], noise: Float[Tensor, "b n c"]
) -> Float[Tensor, "b n c"]:
    """Return t noise + (1 - t) tokens: t = 0 is the identity, t = 1 pure noise. Not variance preserving, by definition.

    Source:
        MAR-3D, arXiv:2503.20519 (condition augmentation).
    """
    mix = time.to(tokens.dtype)[:, None, None]
    return mix * noise + (1 - mix) * tokens


class ConditionPrefix(nn.Module):
    """Makes the rows that stand before the tokens, without their positions.

    Exactly one of `num_classes`, `feature_shapes` and `text` is given. A class fills all `num_buffer` rows with its embedding, and one
    learned row stands for "no class". Features are projected by one linear layer per encoder (by none where the widths agree, which is
    how MAR-3D was released) and joined along the sequence; every row has its own learned stand-in for "no features". A text
    has its own rows (`TextRows`), padding in place of what is missing. The tokens of a coarser stage, if any, come last.

    Args:
        dim: Width of the encoder.
        num_classes: Number of classes, or None.
        num_buffer: Number of rows that a class fills.
        feature_shapes: `(length, channels)` of every encoder's features, or None.
        low_res_shape: `(tokens, channels)` of the coarser stage, or None.
        embed_low_res_time: Whether the rows of the coarser stage are told how much noise was mixed in.
        drop_low_res: Whether "no condition" drops the coarser stage too, not the class or features alone.
        hierarchy: The classes as a tree; a condition may then be any node of it, or paths.
        text: What makes rows of texts, or None.

    Raises:
        ValueError: If none or several of `num_classes`, `feature_shapes` and `text` are given.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_classes: int | None,
        num_buffer: int,
        feature_shapes: Sequence[tuple[int, int]] | None,
        low_res_shape: tuple[int, int] | None,
        embed_low_res_time: bool,
        drop_low_res: bool,
        hierarchy: ClassHierarchy | None = None,
        text: TextRows | None = None,
    ) -> None:
        super().__init__()
        if (num_classes is not None) + bool(feature_shapes) + (text is not None) != 1:
            beside = "" if text is None else " beside texts"
            raise ValueError(
                f"num_classes is {num_classes} and feature_shapes is {feature_shapes}{beside}, expected exactly one of them"
            )
        self.num_classes, self.num_buffer = num_classes, num_buffer
        self.feature_shapes = [tuple(shape) for shape in feature_shapes or ()]
        self.text: TextRows | None = None
        self.low_res_shape = low_res_shape
        if num_classes is not None:
            self.class_embedding: nn.Embedding | ClassPathEmbedding = nn.Embedding(num_classes, dim)
            nn.init.normal_(self.class_embedding.weight, std=0.02)
            if hierarchy is not None:
                self.class_embedding = ClassPathEmbedding(hierarchy, dim)
            null_rows = 1
        elif text is not None:
            self.text, num_buffer, null_rows = text, text.num_tokens, 0
        else:
            self.projections = nn.ModuleList(
                nn.Identity() if channels == dim else _linear(channels, dim) for _, channels in self.feature_shapes
            )
            null_rows = num_buffer = sum(length for length, _ in self.feature_shapes)
        self.num_condition_rows = num_buffer
        if null_rows:
            self.null = nn.Parameter(torch.empty(null_rows, dim))
            nn.init.normal_(self.null, std=0.02)
        if low_res_shape is not None:
            self.low_res = _linear(low_res_shape[1], dim)
            if embed_low_res_time:
                self.low_res_time = TimeEmbedding(dim)
            if drop_low_res:
                self.low_res_null = nn.Parameter(torch.empty(low_res_shape[0], dim))
                nn.init.normal_(self.low_res_null, std=0.02)

    @classmethod
    def of_config(cls, config: Any) -> ConditionPrefix:
        """Return the prefix of a `MaskedAR` of this config."""
        dim, shape, low_res = config["encoder_dim"], config["text_shape"], config["low_res_shape"]
        encoder = config["text_encoder"]
        return cls(
            dim,
            num_classes=config["num_classes"],
            num_buffer=config["num_buffer"],
            feature_shapes=[(length, channels) for length, channels in config["feature_shapes"] or ()],
            low_res_shape=None if low_res is None else (low_res[0], low_res[1]),
            embed_low_res_time=config["embed_low_res_time"],
            drop_low_res=config["drop_low_res"],
            hierarchy=read_hierarchy(config["class_hierarchy"], config["num_classes"]),
            text=None if shape is None else TextRows(shape[0], shape[1], dim, encoder, has_mean=False),
        )

    @property
    def num_rows(self) -> int:
        """Number of rows of the whole prefix."""
        return self.num_condition_rows + (self.low_res_shape[0] if self.low_res_shape else 0)

    def forward(
        self,
        condition: Condition,
        low_res: Float[Tensor, "b n c"] | None = None,
        low_res_time: Float[Tensor, " b"] | None = None,
        drop: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b p d"]:
        """Return the prefix.

        Args:
            low_res: Tokens of the coarser stage, already mixed with noise.
            low_res_time: Share of noise that was mixed in, 0 to 1.
            drop: Samples whose condition is replaced by the learned stand-in.
        """
        rows = self._condition_rows(condition, drop)
        coarse = self._low_res_rows(low_res, low_res_time)
        if drop is not None and coarse is not None and hasattr(self, "low_res_null"):
            coarse = torch.where(drop[:, None, None], self.low_res_null.to(coarse.dtype), coarse)
        return rows if coarse is None else torch.cat((rows, coarse), dim=1)

    def check(self, condition: Condition, low_res: Tensor | None) -> int:
        """Check the kind, shapes and labels of a condition and return the batch size.

        Raises:
            ValueError: If the condition is of the other kind or has other shapes, a label is out of range, or the coarser stage is
                missing or unexpected.
        """
        if isinstance(condition, TextCondition) or self.text is not None:
            check_kind(condition, self.text)
            assert isinstance(condition, TextCondition)
            batch = len(condition)
        elif self.num_classes is not None:
            if not isinstance(condition, Tensor) or condition.is_floating_point() or condition.ndim != 1:
                raise ValueError(f"condition is {_describe(condition)}, expected class labels (b,)")
            check_labels(condition, count_conditions(self.class_embedding, self.num_classes))
            batch = condition.shape[0]
        else:
            features = [condition] if isinstance(condition, Tensor) else list(condition)
            batch = features[0].shape[0] if features and features[0].ndim else 0
            if [tuple(f.shape) for f in features] != [(batch, *shape) for shape in self.feature_shapes]:
                wanted = ", ".join(f"(b, {length}, {channels})" for length, channels in self.feature_shapes)
                raise ValueError(f"condition is {_describe(condition)}, expected features {wanted}")
        if (low_res is None) != (self.low_res_shape is None):
            state = "missing" if low_res is None else "given"
            raise ValueError(f"low_res is {state}, but this model's low_res_shape is {self.low_res_shape}")
        if low_res is not None and tuple(low_res.shape) != (batch, *(self.low_res_shape or ())):
            raise ValueError(
                f"low_res has shape {tuple(low_res.shape)}, expected {(batch, *(self.low_res_shape or ()))}"
            )
        return batch

    def _condition_rows(self, condition: Condition, drop: Tensor | None) -> Tensor:
        if isinstance(condition, TextCondition):
            assert self.text is not None
            told = self.text.resolve(condition, self.text.null.device)
            return self.text.rows(told if drop is None else self.text.without_text(told, drop))
        if isinstance(condition, Tensor) and self.num_classes is not None:
            rows = self.class_embedding(condition)[:, None].expand(-1, self.num_buffer, -1)
        else:
            features = [condition] if isinstance(condition, Tensor) else condition
            dtype = self.null.dtype
            parts = [layer(f.to(dtype)) for layer, f in zip(self.projections, features, strict=True)]
            rows = torch.cat(parts, dim=1)
        return rows if drop is None else torch.where(drop[:, None, None], self.null.to(rows.dtype), rows)

    def _low_res_rows(self, low_res: Tensor | None, time: Tensor | None) -> Tensor | None:
        if low_res is None:
            return None
        rows = self.low_res(low_res.to(self.low_res.weight.dtype))
        if hasattr(self, "low_res_time") and time is not None:
            # The embedding was made for timesteps 0 to 999.
            rows = rows + self.low_res_time(1000 * time)[:, None]
        return rows


def _linear(channels: int, dim: int) -> nn.Linear:
    layer = nn.Linear(channels, dim)
    xavier_linears(layer)
    return layer


def _describe(condition: Condition) -> str:
    if isinstance(condition, Tensor):
        return f"{condition.dtype} of shape {tuple(condition.shape)}"
    if isinstance(condition, TextCondition):
        return f"{len(condition)} texts"
    return f"a list of shapes {[tuple(feature.shape) for feature in condition]}"
