"""Train a generator on a cache of token pyramids: the one task of every generator but the shape cascade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor

from hiergen.data.codes import INDEX, CodeSet
from hiergen.data.text.captioned import CaptionedCodes, caption_codes, text_entries
from hiergen.generators.base import Generator
from hiergen.generators.conditioning import TextCondition
from hiergen.generators.conditioning.class_hierarchy import ClassHierarchy
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create, get_preset
from hiergen.seeding import make_rng
from hiergen.training.tasks.base import Task
from hiergen.training.tasks.settings import GeneratorTaskConfig

__all__ = ["GeneratorTask", "GeneratorTaskConfig", "name_classes", "read_sizes"]


def read_sizes(codes: str, class_paths: bool = False, class_table: str | None = None) -> dict[str, Any]:
    """Return the config entries of a generator that a cache of codes tells, none if it is not there."""
    if not (Path(codes) / INDEX).is_file():
        return {}
    index = json.loads((Path(codes) / INDEX).read_text())
    return {"level_specs": index["specs"], **_class_entries(index["classes"], class_paths, class_table)}


def _class_entries(classes: Sequence[str], class_paths: bool, class_table: str | None) -> dict[str, Any]:
    entries: dict[str, Any] = {"num_classes": len(classes)}
    if class_table is not None:
        entries["class_hierarchy"] = ClassHierarchy.from_table(class_table, classes).to_json()
    elif class_paths:
        entries["class_hierarchy"] = ClassHierarchy.from_names(classes).to_json()
    return entries


def name_classes(generator: Generator, codes: CodeSet) -> None:
    """Write the names of a cache's classes into a generator's config, by their numbers, as diffusers' DiT has them."""
    if codes.classes:
        generator.register_to_config(id2label={str(index): name for index, name in enumerate(codes.classes)})


class GeneratorTask(Task):
    """The generator's own loss on cached pyramids with class labels."""

    def __init__(self, config: GeneratorTaskConfig) -> None:
        self.dataset = codes = _open(config, config.codes)
        derived = {
            "level_specs": codes.level_specs,
            **(
                _class_entries(codes.classes, config.class_paths, config.class_table)
                if config.captions is None
                else text_entries(config.captions)
            ),
            **_standardization(config.preset, codes),
        }
        given = config.overrides.get("num_classes")
        if given is not None and given < len(codes.classes):
            raise ValueError(
                f"overrides.num_classes is {given}, but the cache {config.codes!r} has {len(codes.classes)} classes: leave it out"
            )
        self.generator = cast(Generator, create(config.preset, **{**derived, **config.overrides}))
        if config.captions is None:
            name_classes(self.generator, codes)
        self.generator.check_tokenizer(codes.specs)
        _check_scale(self.generator, codes)
        self.players = {"generator": self.generator}
        if config.balance:
            self.weights = _balanced(codes, config.balance, config.class_table)
        self._random_until = config.random_until
        if config.random_until is not None and not hasattr(self.generator, "random_share"):
            raise ValueError(
                f"random_until is {config.random_until}, but a {type(self.generator).__name__} has no random orders: leave it out"
            )
        if config.validation_codes is not None:
            self.validation = held_out = _open(config, config.validation_codes)
            self.generator.check_tokenizer(held_out.specs)
        self._tokenizer = from_pretrained(config.tokenizer) if config.tokenizer is not None else None
        if self._tokenizer is not None:
            self.generator.check_tokenizer(self._tokenizer.specs)
        if isinstance(self.generator, NextScaleAR):
            if self._tokenizer is None:
                raise ValueError(
                    f"tokenizer is None, but {config.preset!r} computes its inputs with the codebook of the tokenizer that made the codes: "
                    "give --task.tokenizer"
                )
            # A tokenizer whose levels are added up in another way offers one for the generator's inputs.
            self.generator.take_quantizer(
                getattr(self._tokenizer, "next_scale_quantizer", None) or self._tokenizer.quantizer
            )

    def begin_step(self, samples_seen: int) -> None:
        if self._random_until is not None:
            start, end = self._random_until
            left = 1.0 if samples_seen < start else 0.0
            if start <= samples_seen < end:
                left = (end - samples_seen) / (end - start)
            cast(Any, self.generator).random_share = left

    def losses(self, player: str, batch: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        codes = cast(CodeSet, self.dataset)
        condition: Any = batch["label"]
        if "text" in batch:
            condition = TextCondition(batch["text"], batch["text_mask"])
        return self.generator.loss(codes.pyramid(batch), condition, rng=rng)

    def images(self) -> dict[str, Tensor]:
        """Return one sample of each of the first eight classes, or texts, always from the same draws."""
        if self._tokenizer is None:
            return {}
        device = next(self.generator.parameters()).device
        codes = cast(CodeSet, self.dataset)
        told: Tensor | TextCondition = torch.arange(min(8, len(codes.classes)), device=device)
        if isinstance(codes, CaptionedCodes):
            told = codes.texts[:8].to(device)
        with torch.no_grad():
            pyramid = self.generator.generate(told, rng=make_rng("tracked samples"))
            return {"samples": self._tokenizer.to(device).decode(pyramid)}


def _open(config: GeneratorTaskConfig, folder: str) -> CodeSet:
    """Return a cache, with its captions where the generator reads them."""
    codes = CodeSet.open(folder)
    return codes if config.captions is None else caption_codes(codes, folder, config.captions)


def _balanced(codes: CodeSet, balance: float, class_table: str | None) -> Float64[Tensor, " n"]:
    """Return how often each sample is visited, for `GeneratorTaskConfig.balance`.

    Class-balanced sampling with a temperature, as Mahajan et al. (arXiv:1805.00932) have it at a balance of 0.5.
    """
    if class_table is not None:
        coarsest = ClassHierarchy.from_table(class_table, codes.classes).levels[0]
    else:
        coarsest = ClassHierarchy.from_names(codes.classes).levels[0]
    of_leaf = torch.tensor([len(coarsest.names) + leaf if x is None else x for leaf, x in enumerate(coarsest.of_leaf)])
    groups = of_leaf[codes.labels]
    return groups.bincount()[groups].double() ** -balance


#: The generators that standardize tokens by their mean and deviation.
_STANDARDIZING = ("FlowTransformer", "MaskedAR")


def _standardization(preset: str, codes: CodeSet) -> dict[str, Any]:
    """Return the config entries that standardize the tokens of a cache, none where the preset scales them in its own way."""
    chosen = get_preset(preset)
    says_how = any(name.startswith("latent_") for name in chosen.config)
    if chosen.model not in _STANDARDIZING or says_how or any(spec.is_discrete for spec in codes.specs):
        return {}
    if chosen.model == "MaskedAR" and len(codes.specs) > 1:
        # Levels differ: a pooled map varies less than the one it is pooled from.
        levels = codes.level_statistics()
        return {"latent_mean": [list(x.mean) for x in levels], "latent_std": [list(x.std) for x in levels]}
    statistics = codes.statistics()
    return {"latent_mean": list(statistics.mean), "latent_std": list(statistics.std)}


#: Range of the root mean square of standardized tokens; it is 1 if the statistics are those of the tokenizer that made the tokens.
_RMS_RANGE = (0.25, 4.0)


def _check_scale(generator: Any, codes: CodeSet) -> None:
    """Check that a generator's statistics are those of the tokenizer that made a cache, by standardizing the cache's tokens.

    Raises:
        ValueError: If they clearly are not. A flow or diffusion model learns nothing on tokens far from unit size.
    """
    if not hasattr(generator, "standardize"):
        return
    levels = [(level, spec.num_tokens) for level, spec in zip(codes.level_statistics(), codes.specs, strict=True)]
    mean, std = (
        torch.cat([torch.tensor(getattr(level, name)).expand(1, count, -1) for level, count in levels], dim=1)
        for name in ("mean", "std")
    )
    centered = generator.standardize(mean)
    # The deviation alone: what one deviation from the mean becomes, less the mean.
    spread = generator.standardize(mean + std) - centered
    rms = float((centered.square() + spread.square()).mean().sqrt())
    low, high = _RMS_RANGE
    if not low <= rms <= high:
        raise ValueError(
            f"the generator's latent statistics give the tokens of this cache a root mean square of {rms:.3g}, expected about 1 "
            f"({low} to {high}): they are another tokenizer's. Leave latent_mean, latent_std and latent_multiplier out of the "
            f"overrides, or give those of the cache: {codes.statistics()}"
        )
