"""Run a tokenizer over a dataset: a cache of token pyramids, or reconstructions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.config import fingerprint, to_json
from hiergen.data.codes import CodeSet, write_codes
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.on_disk import PictureSet, Views, picture_views
from hiergen.generators.base import Generator
from hiergen.pyramid import TokenPyramid
from hiergen.seeding import make_rng
from hiergen.tokenizers.base import Tokenizer

#: Entries that configs did not have at first, and the values with which a model is what it was without them, fingerprint included.
_CAME_LATER: dict[str, Any] = {
    "conv_channels": 0,
    "conv_blocks": [2, 1, 1, 3],
    "cnn_stem": 1,
    "spread_weight": 0.0,
    "class_hierarchy": None,
    "level_conditions": False,
    "encoder_mixer": None,
    "mixer": None,
    "mixer_blocks": "alternate",
    "text_shape": None,
    "text_encoder": None,
    "plan": None,
    "exit_losses": "none",
    "exit_distillation": False,
    "chains": None,
    "share_kv": False,
    "chain_losses": False,
    "anchor_reach": None,
    "extent": None,
}


def tokenizer_fingerprint(tokenizer: Tokenizer[Any] | Generator) -> str:
    """Return 16 hexadecimal digits that change when the config or any of the weights of a tokenizer (or generator) change."""
    digest = hashlib.sha256()
    config = {
        name: to_json(value)
        for name, value in tokenizer.config.items()
        if not name.startswith("_") and not (name in _CAME_LATER and to_json(value) == _CAME_LATER[name])
    }
    digest.update(fingerprint(config).encode())
    for name, value in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else bytes(str(value.item()), "ascii")
        )
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_images(
    tokenizer: Tokenizer,
    images: ImageSet | PictureSet,
    folder: str | Path,
    *,
    flips: bool = False,
    views: Views | None = None,
    sample_seed: int | None = None,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> CodeSet:
    """Write the token pyramids of a set of images to `folder`, or return the cache that is there.

    Args:
        tokenizer: The tokenizer, in eval mode.
        images: The images, in memory or on disk.
        folder: Folder of the cache; a cache of another tokenizer or other data is refused.
        flips: The same as `views="flips"`.
        views: "center", "flips" (the mirror image as a second variant of each sample) or "ten_crop" (ten variants; pictures on
            disk only); see `hiergen.data.images.on_disk.picture_views`. Broken pictures on disk are replaced by the next ones.
        sample_seed: Draw continuous tokens from their posterior, one draw per variant, as LightningDiT's latents are; None takes the
            mode. The draws depend on this, on the shard and on `batch_size`.
        batch_size: Number of images per pass.
        progress: Called with the number of images done.

    Raises:
        ValueError: If the folder holds another cache, values leave [-1, 1], the views need pictures that are not there, or discrete
            tokens are to be drawn.
    """
    kind: Views = views or ("flips" if flips else "center")
    if isinstance(images, ImageSet) and kind == "ten_crop":
        raise ValueError("views='ten_crop' needs the pictures themselves, got images in memory: set in_memory=False")
    if sample_seed is not None and any(spec.is_discrete for spec in tokenizer.specs):
        raise ValueError(
            f"sample_seed is {sample_seed}, but the tokens of {type(tokenizer).__name__} are discrete: leave it out"
        )

    def encode(start: int, stop: int) -> tuple[list[TokenPyramid], Tensor]:
        rng = None if sample_seed is None else make_rng(sample_seed, "encode", start)
        if not isinstance(images, ImageSet):
            return _encode_pictures(tokenizer, images, range(start, stop), kind, batch_size, rng)
        chosen = images.images[start:stop]
        variants = [chosen, chosen.flip(-1)] if kind == "flips" else [chosen]
        pyramids = [encode_batches(tokenizer, variant, batch_size=batch_size, rng=rng) for variant in variants]
        return pyramids, images.labels[start:stop]

    known: dict[str, object] = {"tokenizer": tokenizer_fingerprint(tokenizer), "data": images.fingerprint}
    # Caches written before there were ten crops keep their fingerprint.
    known |= {"views": kind} if kind == "ten_crop" else {"flips": kind == "flips"}
    known |= {} if sample_seed is None else {"sample_seed": sample_seed, "batch_size": batch_size}
    return write_codes(
        folder,
        encode,
        num_samples=len(images),
        classes=images.classes,
        source=fingerprint(known),
        progress=progress,
    )


def _encode_pictures(
    tokenizer: Tokenizer,
    pictures: PictureSet,
    places: range,
    kind: Views,
    batch_size: int,
    rng: torch.Generator | None,
) -> tuple[list[TokenPyramid], Tensor]:
    """Return one pyramid per variant, and the labels, never holding more images than one pass."""
    parts: list[list[TokenPyramid]] = []
    labels: list[int] = []
    count = max(1, batch_size // {"center": 1, "flips": 2, "ten_crop": 10}[kind])
    for start in range(0, len(places), count):
        read = [pictures.read(place) for place in places[start : start + count]]
        labels += [pictures.source.labels[found] for _, found in read]
        views = torch.stack([picture_views(picture, pictures.size, kind) for picture, _ in read])
        pyramid = encode_batches(tokenizer, views.flatten(0, 1), batch_size=batch_size, rng=rng)
        parts.append([pyramid[variant :: views.shape[1]] for variant in range(views.shape[1])])
    return [join(variant) for variant in zip(*parts, strict=True)], torch.tensor(labels)


@torch.no_grad()
def encode_batches(
    tokenizer: Tokenizer, images: Tensor, *, batch_size: int = 64, rng: torch.Generator | None = None
) -> TokenPyramid:
    """Return the pyramid of many images, encoded a batch at a time, on the CPU; drawn by `rng`, or without one the mode.

    Raises:
        ValueError: If the values leave [-1, 1], or are not finite; or if the tokenizer refuses the shape.
    """
    low, high = torch.aminmax(images)
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(f"images span {low:.4g} to {high:.4g}, expected values in [-1, 1]: scale with x / 127.5 - 1")
    parts = [tokenizer.encode(part.to(tokenizer.device), rng=rng).to("cpu") for part in images.split(batch_size)]
    return join(parts)


def join(parts: Sequence[TokenPyramid]) -> TokenPyramid:
    """Return the samples of several pyramids of the same specs as one."""
    levels = tuple(torch.cat([part.levels[k] for part in parts]) for k in range(len(parts[0])))
    return TokenPyramid(levels, parts[0].specs)


@torch.no_grad()
def decode_batches(tokenizer: Tokenizer, pyramid: TokenPyramid, *, batch_size: int = 64) -> Tensor:
    """Return the images of many pyramids, decoded a batch at a time, clamped to [-1, 1], on the CPU."""
    parts = [pyramid[start : start + batch_size] for start in range(0, pyramid.batch_size, batch_size)]
    return torch.cat([tokenizer.decode(part.to(tokenizer.device)).clamp(-1, 1).cpu() for part in parts])
