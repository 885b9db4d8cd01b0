"""Run a shape tokenizer over a set of shapes: a cache of token pyramids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.codes import CodeSet, write_codes
from hiergen.data.shapes import ShapeBatchConfig, ShapeDataConfig, ShapeDataset
from hiergen.pipelines.encoding import tokenizer_fingerprint
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.pyramid_vae import PyramidVAE


@torch.no_grad()
def encode_shapes(
    tokenizer: PyramidVAE,
    shapes: ShapeDataset,
    folder: str | Path,
    *,
    num_variants: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> CodeSet:
    """Write the token pyramids of a set of shapes to `folder`, or return the cache that is there.

    The tokens are the means of their posteriors; they carry no gradient, so nothing that is trained on them reaches the tokenizer.

    Args:
        tokenizer: In eval mode.
        shapes: What to encode.
        folder: Where to; a cache of another tokenizer or other data is refused.
        num_variants: Draws of each shape: other surface points, and other augmentation where `shapes` has one.
        seed: Of the draws.
        batch_size: Shapes a pass.
        progress: Called with the number of shapes done.

    Raises:
        ValueError: If `num_variants` is below 1, or the folder holds another cache.
    """
    if num_variants < 1:
        raise ValueError(f"num_variants is {num_variants}, expected at least 1")

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], Tensor]:
        variants = []
        for variant in range(num_variants):
            parts = [
                encode_clouds(tokenizer, shapes, range(i, min(i + batch_size, stop)), epoch=variant, seed=seed)
                for i in range(start, stop, batch_size)
            ]
            levels = tuple(torch.cat([part.levels[k] for part in parts]) for k in range(len(parts[0])))
            variants.append(TokenPyramid(levels, parts[0].specs))
        return variants, torch.tensor(shapes.labels[start:stop])

    drawn = {"variants": num_variants, "seed": seed}
    source = fingerprint({"tokenizer": tokenizer_fingerprint(tokenizer), "data": shapes.fingerprint, **drawn})
    return write_codes(
        folder, encode, num_samples=len(shapes), classes=shapes.classes, source=source, progress=progress
    )


@torch.no_grad()
def encode_clouds(
    tokenizer: PyramidVAE, shapes: ShapeDataset, indices: Sequence[int], *, epoch: int = 0, seed: int = 0
) -> TokenPyramid:
    """Return the tokens of some shapes as one batch, on the CPU."""
    points = shapes.batch([(index, epoch) for index in indices], seed=seed)["points"]
    return tokenizer.encode(points.to(tokenizer.device)).to("cpu")


def cloud_config(tokenizer: PyramidVAE, source: str) -> ShapeDataConfig:
    """Return the config of the shapes of a source with as many points as the tokenizer reads; 4096 where it reads any number."""
    counts = tokenizer.config["point_counts"] or [4096]
    return ShapeDataConfig(
        source=source, batch=ShapeBatchConfig(num_points=counts[0], num_queries=1, near_fraction=0.0)
    )
