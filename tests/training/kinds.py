"""Runs of every kind, small enough to be trained many times in a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hiergen.data.codes import write_codes
from hiergen.data.config import DataConfig
from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.data.text.config import TextDataConfig
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.pyramid import TokenPyramid, specs_to_json
from hiergen.registry import create
from hiergen.training.config import OptimConfig
from hiergen.training.tasks.settings import (
    GeneratorTaskConfig,
    ShapeGeneratorTaskConfig,
    ShapeTokenizerTaskConfig,
    TaskConfig,
    TextTaskConfig,
    TokenizerTaskConfig,
)
from hiergen.training.tasks.term_settings import AdversarialConfig, CodebookConfig

RESTOK = {"cnn_channels": 8, "cnn_groups": 2, "encoder_dim": 16, "encoder_depth": 2, "encoder_heads": 2}
RESTOK |= {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "vocab_size": 32}
MAR = {"encoder_dim": 16, "encoder_depth": 1, "encoder_heads": 2, "decoder_dim": 16, "decoder_depth": 1}
MAR |= {"decoder_heads": 2, "head_dim": 16, "head_depth": 1}
VAE = {"num_tokens": [3, 5], "token_dim": 4, "width": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 1}
SHAPES = ShapeDataConfig(
    count=8,
    sampling=SamplingSettings(num_surface=64, num_volume=64, num_near=32, num_farthest=0),
    batch=ShapeBatchConfig(num_points=32, num_ordered=16, num_queries=16, yaw=True),
)
SPECS = [{"num_tokens": 3, "grid": None, "dim": 4}, {"num_tokens": 5, "grid": None, "dim": 4}]
CASCADE = {"num_buffer": 2, "dim": 16, "depth": 1, "num_heads": 2, "head_dim": 16, "head_depth": 1}


def restok_with_gan(folder: Path, data: DataConfig | None = None) -> TaskConfig:
    """Nested dropout, revival, adaptive weight, augmentation, a discriminator with batch norm that begins after two steps."""
    return TokenizerTaskConfig(
        overrides=RESTOK,
        data=data or DataConfig(),
        adversarial=AdversarialConfig(
            discriminator="patch",
            options={"dim": 4, "num_layers": 1},
            start_samples=8,
            is_adaptive=True,
            optim=OptimConfig(lr=3e-4, warmup_samples=8),
        ),
        codebook=CodebookConfig(revive_after=12),
    )


def generator(preset: str, *, count: int = 10, **overrides: Any) -> Callable[[Path], TaskConfig]:
    def make(folder: Path) -> TaskConfig:
        specs = create(preset, **overrides).specs

        def encode(start: int, stop: int) -> tuple[list[TokenPyramid], torch.Tensor]:
            rng = torch.Generator().manual_seed(0)
            variants = []
            for _ in range(2):
                levels = tuple(
                    torch.randint(0, 32, (stop - start, spec.num_tokens), generator=rng)
                    if spec.is_discrete
                    else torch.randn(stop - start, spec.num_tokens, spec.dim, generator=rng)
                    for spec in specs
                )
                variants.append(TokenPyramid(levels, specs))
            return variants, torch.arange(stop - start) % 10

        write_codes(folder / "codes", encode, num_samples=count, classes=[str(k) for k in range(10)], source=preset)
        kind = ShapeGeneratorTaskConfig if preset == "mar3d-tiny" else GeneratorTaskConfig
        return kind(preset=preset, overrides=overrides, codes=str(folder / "codes"))

    return make


def next_scale(folder: Path) -> TaskConfig:
    """A generator with a frozen copy of its tokenizer's codebook, which it is given with its codes."""
    sizes = {"widths": [32], "num_blocks": 1, "code_dim": 4, "vocab_size": 32, "image_size": 3, "sides": [1, 2, 3]}
    torch.manual_seed(0)
    tokenizer = create("multiscale-vq-tiny", **sizes)
    tokenizer.save_pretrained(folder / "tokenizer")
    make = generator("var-tiny", dim=16, depth=1, num_heads=2, level_specs=specs_to_json(tokenizer.specs))
    return dataclasses.replace(make(folder), tokenizer=str(folder / "tokenizer"))


def random_orders(folder: Path) -> TaskConfig:
    """Orders that are random at first, and raster at the end of the run."""
    task = generator("rar-tiny", dim=16, depth=1, num_heads=2)(folder)
    return dataclasses.replace(task, random_until=(8, 24))  # type: ignore[call-arg]


KINDS = {
    "restok with gan": restok_with_gan,
    "hieratok": lambda folder: TokenizerTaskConfig(
        "hieratok-tiny", {"encoder_dim": 16, "encoder_depth": 1, "decoder_dim": 16, "decoder_depth": 1, "tail_depth": 0}
    ),
    "har": generator("har-tiny", dim=20, depth=1),
    "mar": generator("mar-tiny", **MAR),
    "next scale": next_scale,
    "rar": random_orders,
    "flow": generator("flow-tiny", dim=16, depth=1, num_heads=2),
    "shape vae": lambda folder: ShapeTokenizerTaskConfig(overrides={**VAE, "point_counts": [32, 16, 8]}, data=SHAPES),
    "cascade": generator("mar3d-tiny", **CASCADE),
    "text": lambda folder: TextTaskConfig(
        overrides={
            "dims": [16, 32],
            "num_heads": [2, 2],
            "layout": ["m1", ["T1"], "m1"],
            "state_dim": 8,
            "head_dim": 8,
        },
        data=TextDataConfig(length=32),
    ),
}
