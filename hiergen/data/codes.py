"""Caches of token pyramids: encode a dataset once, train generators on it many times.

A cache is a folder of safetensors shards and, written last, an `index.json` with the level specs, the class names and a
fingerprint of tokenizer and data; a cache without index is unfinished and is continued shard by shard.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiergen.data.dataset import Dataset, Sample
from hiergen.files import atomic_path, write_json
from hiergen.nn.latent_statistics import LatentStatistics, latent_statistics
from hiergen.pyramid import LevelSpec, TokenPyramid, specs_from_json, specs_to_json

INDEX = "index.json"
SHARD_SAMPLES = 4096

#: One pyramid per variant, the labels and, where images go with the samples, their features.
Encoded = tuple[list[TokenPyramid], Tensor] | tuple[list[TokenPyramid], Tensor, list[Tensor]]


@dataclasses.dataclass(frozen=True)
class CodeSet(Dataset):
    """A cache of token pyramids in memory; a dataset for training.

    Attributes:
        levels: One tensor per level, `(samples, variants, n)` ids or `(samples, variants, n, d)` tokens; variants are the
            encodings of several crops of one image, of which training draws one at random. Ids have the smallest of the types int16,
            int32 and int64 that holds the vocabulary: ten crops of ImageNet in 128 ids are 3.3 GB, in int64 four times that.
        labels: `(samples,)` int64.
        specs: Specs of the levels.
        classes: Name of each class.
        source: Fingerprint of tokenizer and data.
        features: Features of the image that goes with each variant, one tensor `(samples, variants, n, c)` per network of the
            encoder; empty where the cache holds none.
    """

    unit = "pyramid"

    levels: tuple[Tensor, ...]
    labels: Int64[Tensor, " n"]
    specs: tuple[LevelSpec, ...]
    classes: tuple[str, ...]
    source: str
    features: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def level_specs(self) -> list[dict[str, Any]]:
        """The specs as JSON values, as a generator's config takes them."""
        return specs_to_json(self.specs)

    @property
    def fingerprint(self) -> str:
        return self.source

    def content(self, *, is_whole: bool = False) -> str:
        """Return digits of all codes, which are in memory."""
        digest = hashlib.sha256()
        for tensor in (*self.levels, *self.features, self.labels):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return levels `level_0`, `level_1`, ..., the features `feature_0`, ... where there are any, and `label` of some samples."""
        from hiergen.seeding import derive_seed

        index = torch.tensor([i for i, _ in samples])
        variants = self.levels[0].shape[1]
        if variants == 1:
            chosen = torch.zeros_like(index)
        else:
            chosen = torch.tensor([derive_seed(seed, "variant", epoch, i) % variants for i, epoch in samples])
        batch = {f"level_{k}": level[index, chosen] for k, level in enumerate(self.levels)}
        batch |= {f"feature_{k}": feature[index, chosen] for k, feature in enumerate(self.features)}
        return {**batch, "label": self.labels[index]}

    def pyramid(self, batch: dict[str, Tensor]) -> TokenPyramid:
        """Return the pyramid of what `batch` returned, ids in int64."""
        return TokenPyramid(tuple(_wide(batch[f"level_{k}"]) for k in range(len(self.specs))), self.specs)

    def statistics(self) -> LatentStatistics:
        """Return mean and deviation of each channel over all tokens of all levels: what a generator standardizes them with.

        Raises:
            ValueError: If a level is discrete.
        """
        starts = range(0, len(self), SHARD_SAMPLES)
        return latent_statistics(
            TokenPyramid(tuple(_wide(level[i : i + SHARD_SAMPLES]).flatten(0, 1) for level in self.levels), self.specs)
            for i in starts
        )

    def level_statistics(self) -> list[LatentStatistics]:
        """Return mean and deviation of each channel, separately for every level.

        Raises:
            ValueError: If a level is discrete.
        """
        return [
            latent_statistics(
                TokenPyramid((_wide(part).flatten(0, 1),), (spec,)) for part in level.split(SHARD_SAMPLES)
            )
            for level, spec in zip(self.levels, self.specs, strict=True)
        ]

    @classmethod
    def open(cls, folder: str | Path, *, source: str | None = None) -> CodeSet:
        """Read a finished cache.

        Args:
            folder: What `write_codes` wrote.
            source: Fingerprint that the cache must have, if given.

        Raises:
            ValueError: If the cache is missing, unfinished, damaged, or made from another tokenizer or other data.
        """
        root = Path(folder)
        try:
            index = json.loads((root / INDEX).read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{str(folder)!r} holds no finished cache of codes ({INDEX} is missing); run `hiergen encode`"
            ) from None
        if source is not None and index["source"] != source:
            raise ValueError(
                f"the cache {str(folder)!r} is stale: made from {index['source']}, tokenizer and data are now {source}; "
                "encode again into another folder"
            )
        specs = specs_from_json(index["specs"])
        shards = []
        for name, count in index["shards"].items():
            shard = load_file(root / name) if (root / name).is_file() else {}
            if not shard or shard["label"].shape[0] != count:
                raise ValueError(
                    f"shard {name} of {str(folder)!r} is missing or damaged; delete {INDEX} and encode again"
                )
            shards.append(shard)
        levels = tuple(torch.cat([shard[f"level_{k}"] for shard in shards]) for k in range(len(specs)))
        labels = torch.cat([shard["label"] for shard in shards])
        count = sum(name.startswith("feature_") for name in shards[0])
        features = tuple(torch.cat([shard[f"feature_{k}"] for shard in shards]) for k in range(count))
        return cls(levels, labels, specs, tuple(index["classes"]), index["source"], features)


def name_data(folder: str | Path, name: str) -> None:
    """Note in a finished cache what data it was made of, in words: generators trained on it tell so in their cards."""
    path = Path(folder) / INDEX
    write_json(path, {**json.loads(path.read_text()), "data": name})


def write_codes(
    folder: str | Path,
    encode: Callable[[int, int], Encoded],
    *,
    num_samples: int,
    classes: Sequence[str],
    source: str,
    progress: Callable[[int], None] = lambda done: None,
) -> CodeSet:
    """Write a cache, or finish or return the one that is there.

    Args:
        folder: Folder of the cache.
        encode: Called with a range `(start, stop)` of samples; returns one pyramid per variant, the labels and, if there are any,
            the features, as `CodeSet` holds them.
        num_samples: Number of samples in all.
        classes: Name of each class.
        source: Fingerprint of tokenizer and data: a cache of another source is refused.
        progress: Called with the number of samples done.

    Raises:
        ValueError: If the folder holds a cache, finished or not, of another source.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if (root / INDEX).is_file():
        return CodeSet.open(root, source=source)
    marker = root / ".source"
    if marker.is_file() and marker.read_text() != source:
        raise ValueError(
            f"{str(folder)!r} holds an unfinished cache of another tokenizer or other data; delete it first"
        )
    marker.write_text(source)
    shards: dict[str, int] = {}
    specs: tuple[LevelSpec, ...] = ()
    for start in range(0, num_samples, SHARD_SAMPLES):
        stop = min(start + SHARD_SAMPLES, num_samples)
        path = root / f"codes-{start:09d}.safetensors"
        if not path.is_file() or not specs:
            specs = _write_shard(path, *encode(start, stop))
        shards[path.name] = stop - start
        progress(stop)
    index = {"specs": specs_to_json(specs), "classes": list(classes), "source": source, "shards": shards}
    write_json(root / INDEX, index)
    return CodeSet.open(root, source=source)


def _write_shard(
    path: Path, variants: list[TokenPyramid], labels: Tensor, features: Sequence[Tensor] = ()
) -> tuple[LevelSpec, ...]:
    specs = variants[0].specs
    stacked = (torch.stack([v.levels[k] for v in variants], dim=1).cpu() for k in range(len(specs)))
    tensors = {
        f"level_{k}": _compact(x, spec.vocab_size) for k, (x, spec) in enumerate(zip(stacked, specs, strict=True))
    }
    tensors |= {f"feature_{k}": feature.cpu() for k, feature in enumerate(features)}
    with atomic_path(path) as temporary:
        save_file({**tensors, "label": labels.cpu()}, temporary)
    return specs


def _wide(level: Tensor) -> Tensor:
    """Return ids in the type that pyramids have; tokens as they are."""
    return level if level.is_floating_point() else level.long()


def _compact(level: Tensor, vocab_size: int | None) -> Tensor:
    if vocab_size is None:
        return level
    return level.to(torch.int16 if vocab_size <= 2**15 else torch.int32 if vocab_size <= 2**31 else torch.int64)
