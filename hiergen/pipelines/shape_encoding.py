"""Run a shape tokenizer over a set of shapes: a cache of token pyramids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.codes import CodeSet, write_codes
from hiergen.data.images.features import FeatureCache
from hiergen.data.images.pixels import to_uint8
from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.data.shapes.dataset import ShapeDataset
from hiergen.pipelines.encoding import join, tokenizer_fingerprint
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.pyramid import TokenPyramid
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE


@torch.no_grad()
def encode_shapes(
    tokenizer: PyramidVAE,
    shapes: ShapeDataset,
    folder: str | Path,
    *,
    num_variants: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    image_encoder: ImageEncoder | None = None,
    feature_cache: str | Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> CodeSet:
    """Write the token pyramids of a set of shapes to `folder`, or return the cache that is there.

    The tokens are the means of their posteriors; they carry no gradient, so nothing that is trained on them reaches the tokenizer.

    Args:
        tokenizer: The tokenizer, in eval mode.
        shapes: The shapes to encode.
        folder: Folder of the cache; a cache of another tokenizer or other data is refused.
        num_variants: Number of draws of each shape: other surface points, and other augmentation where `shapes` has one.
        seed: Seed of the draws.
        batch_size: Number of shapes per pass.
        image_encoder: Encoder whose features are written too, of the view that goes with each variant; `shapes.config.image` must be set, so that
            a variant is a draw of view and pose.
        feature_cache: Folder where features are kept by the content of the view, for further runs with the same encoder; None
            keeps none.
        progress: Called with the number of shapes done.

    Raises:
        ValueError: If `num_variants` is below 1, the folder holds another cache, or an image encoder meets shapes without views.
    """
    if num_variants < 1:
        raise ValueError(f"num_variants is {num_variants}, expected at least 1")
    if image_encoder is not None and not shapes.config.image:
        raise ValueError("image_encoder needs views: open the shapes with image=True in their batch config")
    read = None if image_encoder is None else _feature_reader(image_encoder, feature_cache)

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], Tensor, list[Tensor]]:
        variants, features = [], []
        for variant in range(num_variants):
            parts, views = [], []
            for i in range(start, stop, batch_size):
                samples = [(index, variant) for index in range(i, min(i + batch_size, stop))]
                batch = shapes.batch(samples, seed=seed)
                parts.append(tokenizer.encode(batch["points"].to(tokenizer.device)).to("cpu"))
                if read is not None:
                    views.append(read(batch["image"]))
            variants.append(join(parts))
            features.append([torch.cat(network) for network in zip(*views, strict=True)])
        joined = [torch.stack(network, dim=1) for network in zip(*features, strict=True)]
        return variants, torch.tensor(shapes.labels[start:stop]), joined

    drawn: dict[str, Any] = {"variants": num_variants, "seed": seed}
    if image_encoder is not None:
        drawn["image_encoder"] = encoder_fingerprint(image_encoder)
    source = fingerprint({"tokenizer": tokenizer_fingerprint(tokenizer), "data": shapes.fingerprint, **drawn})
    return write_codes(
        folder, encode, num_samples=len(shapes), classes=shapes.classes, source=source, progress=progress
    )


def encoder_fingerprint(encoder: ImageEncoder) -> str:
    """Return what changes when an image encoder's networks or weights change."""
    digest = hashlib.sha256(fingerprint(list(encoder.config["encoders"])).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _feature_reader(encoder: ImageEncoder, folder: str | Path | None) -> Callable[[Tensor], list[Tensor]]:
    if folder is None:
        return lambda images: [value.cpu() for value in encoder(images)]
    cache = FeatureCache(folder, encoder, source=encoder_fingerprint(encoder))
    return lambda images: cache.features(to_uint8(images))


@torch.no_grad()
def encode_clouds(
    tokenizer: PyramidVAE, shapes: ShapeDataset, indices: Sequence[int], *, epoch: int = 0, seed: int = 0
) -> TokenPyramid:
    """Return the tokens of some shapes as one batch, on the CPU."""
    points = shapes.batch([(index, epoch) for index in indices], seed=seed)["points"]
    return tokenizer.encode(points.to(tokenizer.device)).to("cpu")


def cloud_config(tokenizer: PyramidVAE, source: str, *, image: bool = False) -> ShapeDataConfig:
    """Return the config of the shapes of a source with as many points as the tokenizer reads; 4096 where it reads any number.

    With `image` a sample also holds one of its record's views, and the points are in the pose that it shows.
    """
    counts = tokenizer.config["point_counts"] or [4096]
    return ShapeDataConfig(
        source=source, batch=ShapeBatchConfig(num_points=counts[0], num_queries=1, near_fraction=0.0, image=image)
    )
