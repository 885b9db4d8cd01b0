"""The tasks of the shape cascade: a tokenizer of shapes, and a generator on its cached tokens, standardized level by level."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hiergen.data.codes import CodeSet
from hiergen.data.shapes.dataset import open_shapes
from hiergen.generators.conditioning import Condition
from hiergen.generators.masked.cascade import MaskedCascade, MaskedCascadeSettings, StageChoice
from hiergen.losses.occupancy import shape_tokenizer_losses
from hiergen.pipelines.loading import from_pretrained
from hiergen.pyramid import TokenPyramid
from hiergen.registry import create
from hiergen.seeding import make_rng
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.generator import name_classes
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig, ShapeTokenizerTaskConfig
from hiergen.training.tasks.shape_pictures import cloud_pictures, token_pictures

__all__ = [
    "ShapeGeneratorTask",
    "ShapeGeneratorTaskConfig",
    "ShapeTokenizerTask",
    "ShapeTokenizerTaskConfig",
    "num_ordered_points",
]

#: Shapes in pictures for the trackers, and how samples for them are made: in few steps, as they are wanted at every checkpoint.
NUM_SHOWN = 4
SHOWN = MaskedCascadeSettings(num_steps=8)


class ShapeTokenizerTask(Task):
    """Cross-entropy of the occupancy that each level decodes to, and the KL term.

    Raises:
        ValueError: If the preset is no `PyramidVAE`.

    Source:
        MAR-3D, arXiv:2503.20519, section 3.1.
    """

    def __init__(self, config: ShapeTokenizerTaskConfig) -> None:
        self._config = config
        model = create(config.preset, **config.overrides)
        if not isinstance(model, PyramidVAE):
            raise ValueError(f"preset {config.preset!r} is a {type(model).__name__}, expected a PyramidVAE")
        self.tokenizer = model
        self.players = {"tokenizer": model}
        self.dataset = open_shapes(config.data)
        if config.validation is not None:
            self.validation = open_shapes(dataclasses.replace(config.validation, batch=config.data.batch))
        shares = config.level_shares or (1,) * len(model.specs)
        if len(shares) != len(model.specs):
            raise ValueError(
                f"level_shares is {list(shares)}, expected {len(model.specs)} numbers, one per level of {config.preset}"
            )
        self._turn = [level for level, share in enumerate(shares) for _ in range(share)]
        self._is_ordered = config.data.batch.num_ordered >= num_ordered_points(model, config.data.batch.num_points)

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        inside = batch["occupancy"] > 0.5
        parts: list[tuple[slice | Tensor, list[int] | None]] = [(slice(None), None)]
        if self._config.levels == "in_turn":
            levels = torch.tensor([self._turn[row % len(self._turn)] for row in range(len(inside))])
            # A batch smaller than a turn trains its first levels.
            parts = [
                ((levels == level).nonzero()[:, 0].to(inside.device), [level]) for level in sorted(set(levels.tolist()))
            ]
        logits: dict[str, Tensor] = {}
        labels: dict[str, Tensor] = {}
        bottleneck: list[dict[str, Tensor]] = []
        for rows, chosen in parts:
            output = self.tokenizer(
                batch["points"][rows],
                rng=rng,
                points=batch["queries"][rows],
                levels=chosen,
                is_ordered=self._is_ordered,
            )
            logits |= output.features
            labels |= dict.fromkeys(output.features, inside[rows])
            bottleneck.append(output.losses)
        return shape_tokenizer_losses(
            logits,
            labels,
            {name: torch.stack([losses[name] for losses in bottleneck]).mean() for name in bottleneck[0]},
            num_near=self._config.data.batch.num_near,
            near_weight=self._config.near_weight,
        )

    def images(self) -> dict[str, Tensor]:
        """Return the first held-out shapes (training shapes if none are held out), and what each level alone rebuilds of them."""
        shapes = self.validation or self.dataset
        batch = shapes.batch([(index, 0) for index in range(min(NUM_SHOWN, len(shapes)))], seed=0)
        points = batch["points"].to(self.tokenizer.device)
        found = {"shapes": cloud_pictures(points)}
        with torch.no_grad():
            pyramid = self.tokenizer.encode(points, is_ordered=self._is_ordered)
        for level, spec in zip(pyramid.levels, pyramid.specs, strict=True):
            alone = TokenPyramid((level,), (spec,))
            found[f"rebuilt_from_{spec.num_tokens}_tokens"] = token_pictures(self.tokenizer, alone)
        return found


def num_ordered_points(tokenizer: PyramidVAE, num_points: int) -> int:
    """Return how many points of a cloud of `num_points` must come first in farthest-point order for `is_ordered`."""
    config: Any = tokenizer.config
    coarser = [count for count in config.point_counts or () if count < num_points]
    return max([*coarser, max(config.num_tokens) if config.queries == "farthest" else 0])


class ShapeGeneratorTask(Task):
    """The cascade's own loss on cached tokens with labels or features. Tokenizer and image encoder take no part; their output is read.

    Raises:
        ValueError: If the preset is no `MaskedCascade`, the cache does not hold two levels, or no features for the condition
            "image", `start` holds another coarse stage, or `tokenizer` another tokenizer.
    """

    def __init__(self, config: ShapeGeneratorTaskConfig) -> None:
        self._stages: StageChoice = config.stages
        self.dataset = codes = CodeSet.open(config.codes)
        derived: dict[str, Any] = {"level_specs": codes.level_specs, "num_classes": len(codes.classes)}
        if config.condition == "image":
            if not codes.features:
                raise ValueError(
                    f"the cache {config.codes!r} holds no features of images, which condition 'image' needs; encode the shapes "
                    "with an image encoder"
                )
            shapes = [list(feature.shape[2:]) for feature in codes.features]
            derived |= {"num_classes": None, "feature_shapes": shapes}
        self._condition = config.condition
        self.validation = CodeSet.open(config.validation_codes) if config.validation_codes is not None else None
        if config.standardize:
            statistics = codes.level_statistics()
            derived["latent_mean"] = [list(level.mean) for level in statistics]
            derived["latent_std"] = [list(level.std) for level in statistics]
        model = create(config.preset, **{**derived, **config.overrides})
        if not isinstance(model, MaskedCascade):
            raise ValueError(f"preset {config.preset!r} is a {type(model).__name__}, expected a MaskedCascade")
        model.check_tokenizer(codes.specs)
        if config.condition == "class":
            name_classes(model, codes)
        if config.start is not None:
            _start_from(model, config.start)
        # What is not trained must not be in the optimizer: weight decay would change it.
        model.low.requires_grad_(config.stages != "high")
        model.high.requires_grad_(config.stages != "low")
        self.generator = model
        self.players = {"generator": model}
        self._tokenizer: PyramidVAE | None = None
        if config.tokenizer is not None:
            found = from_pretrained(config.tokenizer)
            if not isinstance(found, PyramidVAE):
                raise ValueError(f"tokenizer {config.tokenizer!r} is a {type(found).__name__}, expected a PyramidVAE")
            model.check_tokenizer(found.specs)
            self._tokenizer = found

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        codes = cast(CodeSet, self.dataset)
        condition: Condition = batch["label"]
        if self._condition == "image":
            condition = [batch[f"feature_{k}"] for k in range(len(codes.features))]
        return self.generator.loss(codes.pyramid(batch), condition, stages=self._stages, rng=rng)

    def images(self) -> dict[str, Tensor]:
        """Return one sample of each of the first classes, or of the first images of the cache, always from the same draws."""
        if self._tokenizer is None:
            return {}
        codes, device = cast(CodeSet, self.dataset), self.generator.device
        condition: Condition = torch.arange(min(NUM_SHOWN, len(codes.classes)), device=device)
        if self._condition == "image":
            batch = codes.batch([(index, 0) for index in range(min(NUM_SHOWN, len(codes)))], seed=0)
            condition = [batch[f"feature_{k}"].to(device) for k in range(len(codes.features))]
        with torch.no_grad():
            pyramid = self.generator.generate(condition, SHOWN, rng=make_rng("tracked samples"))
        # The fine stage has learned nothing where the coarse one is trained alone.
        shown = pyramid.prefix(1) if self._stages == "low" else pyramid
        return {"samples": token_pictures(self._tokenizer.to(device), shown)}


def _start_from(model: MaskedCascade, folder: str) -> None:
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"start is {folder!r}, which holds no model; train the coarse stage first")
    trained = MaskedCascade.from_pretrained(folder)
    sizes = ("dim", "depth", "num_heads", "num_classes", "feature_shapes", "level_specs")
    for name in (*sizes, "latent_mean", "latent_std", "latent_multiplier"):
        if trained.config[name] != model.config[name]:
            raise ValueError(f"start has {name} {trained.config[name]}, this cascade {model.config[name]}")
    model.low.load_state_dict(trained.low.state_dict())
    model.initialize_high()
