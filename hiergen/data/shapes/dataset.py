"""Prepared shapes as training samples: surface points, queries with occupancy, class, and a conditioning image.

Letters: `b` batch, `p` surface points, `q` queries.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hiergen.config import fingerprint
from hiergen.data.dataset import Dataset, Sample
from hiergen.data.files.content import Span, content_digest
from hiergen.data.shapes.building import PROCEDURAL, PrepareShapesSettings, build_record, find_jobs, source_digest
from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.data.shapes.procedural import PROCEDURAL_CLASSES
from hiergen.data.shapes.records import ShapeFolder, ShapeRecord
from hiergen.data.shapes.views import ViewSettings
from hiergen.geometry.poses import apply_transform, fit_transform, yaw_rotation
from hiergen.geometry.surface_sampling import SamplingSettings, farthest_order
from hiergen.seeding import derive_seed

#: Where the test shapes of the procedural set begin; a multiple of any small number of classes.
TEST_OFFSET = 840_000
#: One prepared shape in this many, chosen by a hash of the key, is a test shape.
TEST_EVERY = 10


class ShapeDataset(Dataset):
    """Samples of prepared shapes; each is a pure function of (seed, epoch, index).

    Args:
        records: Prepared shapes, in memory or a `ShapeFolder`.
        config: What a sample holds.
        classes: Class names in the order of their ids; None takes those of the records, sorted.

    Raises:
        ValueError: If there is no record, or one has a class that is not among `classes`.
    """

    unit = "shape"

    def __init__(
        self, records: Sequence[ShapeRecord], config: ShapeBatchConfig, *, classes: Sequence[str] | None = None
    ) -> None:
        if not len(records):
            raise ValueError("there are no shape records")
        self._records = records
        self.config = config
        names = records.class_names if isinstance(records, ShapeFolder) else [r.meta.class_name for r in records]
        self.classes = tuple(sorted(set(names)) if classes is None else classes)
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise ValueError(f"records have classes {unknown}, expected some of {list(self.classes)}")
        self.labels = tuple(self.classes.index(name) for name in names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return sample `index` as epoch 0 of seed 0 has it."""
        return self.sample(index, epoch=0, seed=0)

    def batch(self, samples: Sequence[Sample], *, seed: int) -> dict[str, Tensor]:
        """Return samples `(index, epoch)`, stacked: see `sample`."""
        items = [self.sample(index, epoch=epoch, seed=seed) for index, epoch in samples]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def sample(self, index: int, *, epoch: int, seed: int) -> dict[str, Tensor]:
        """Return one sample.

        Returns:
            "points" `(p, 6)` float32: xyz and unit normals. "queries" `(q, 3)` float32 and "occupancy" `(q,)` float32, 1 inside:
            the last `config.num_near` are near the surface. "label" `()` int64. With `config.image` also "image" `(3, h, w)`,
            float32 in [-1, 1].

        Raises:
            ValueError: If the record holds too few points, no near queries or no views; the record is named.
        """
        record = self._records[index]
        rng = np.random.Generator(np.random.Philox(derive_seed(seed, "shape", epoch, index)))
        self._check(record)
        matrix, view = self._pose(record, rng)
        points = self._points(record, matrix, rng)
        queries, occupancy = self._queries(record, matrix, rng)
        item = {
            "points": torch.from_numpy(points),
            "queries": torch.from_numpy(queries),
            "occupancy": torch.from_numpy(occupancy),
            "label": torch.tensor(self.labels[index]),
        }
        if view is not None:
            pixels = torch.from_numpy(record.view(view).copy())
            item["image"] = pixels.permute(2, 0, 1).float().div(127.5).sub(1)
        return item

    @property
    def fingerprint(self) -> str:
        """Changes when the records or the config change."""
        if isinstance(self._records, ShapeFolder):
            content = self._records.fingerprint
        else:
            metas = [dataclasses.astuple(record.meta) for record in self._records]
            content = hashlib.sha256(repr(metas).encode()).hexdigest()
        return fingerprint({"records": content, "config": dataclasses.asdict(self.config)})

    def content(self, *, is_whole: bool = False) -> str | None:
        if not isinstance(self._records, ShapeFolder):
            return None
        return content_digest([Span(path) for path in self._records.paths], is_whole=is_whole)

    def _check(self, record: ShapeRecord) -> None:
        config, key = self.config, record.meta.key
        if len(record.surface) < config.num_points:
            raise ValueError(
                f"shape {key!r} has {len(record.surface)} surface points, num_points is {config.num_points}"
            )
        if config.num_near and not len(record.near_points):
            raise ValueError(f"shape {key!r} has no near queries; set near_fraction to 0")
        if config.num_near < config.num_queries and not len(record.volume_points):
            raise ValueError(f"shape {key!r} has no volume queries; set near_fraction to 1")
        if config.image and not record.views:
            raise ValueError(f"shape {key!r} has no views; prepare it with num_views above 0")

    def _pose(self, record: ShapeRecord, rng: np.random.Generator) -> tuple[np.ndarray, int | None]:
        """Return the 4x4 matrix of this sample and the view it is seen in."""
        if self.config.image:
            view = int(rng.integers(len(record.views)))
            if record.view_transforms is None:
                return np.eye(4), view
            return record.view_transforms[view].astype(np.float64), view
        matrix = np.eye(4)
        if self.config.yaw:
            matrix[:3, :3] = yaw_rotation(rng.uniform(0, 2 * np.pi))
            matrix = fit_transform(record.surface[:, :3], matrix[:3, :3])
        if self.config.mirror and rng.random() < 0.5:
            matrix[0] *= -1
        if self.config.min_scale < 1:
            matrix[:3] *= rng.uniform(self.config.min_scale, 1.0)
        return matrix, None

    def _points(self, record: ShapeRecord, matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        config = self.config
        chosen = record.surface[rng.permutation(len(record.surface))[: config.num_points]]
        if config.num_ordered:
            front = farthest_order(chosen[:, :3], config.num_ordered)
            rest = np.setdiff1d(np.arange(len(chosen)), front)
            chosen = chosen[np.concatenate([front, rest])]
        normals = chosen[:, 3:] @ matrix[:3, :3].T
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(min=1e-12)
        return np.concatenate([apply_transform(matrix, chosen[:, :3]), normals], axis=1).astype(np.float32)

    def _queries(
        self, record: ShapeRecord, matrix: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        num_near = self.config.num_near
        volume, inside = _volume_queries(record, self.config.num_queries - num_near, matrix, rng)
        if not num_near:
            return volume.astype(np.float32), inside.astype(np.float32)
        chosen = rng.integers(len(record.near_points), size=num_near)
        near = apply_transform(matrix, record.near_points[chosen].astype(np.float64))
        occupancy = np.concatenate([inside, record.near_occupancy[chosen]])
        return np.concatenate([volume, near]).astype(np.float32), occupancy.astype(np.float32)


def procedural_records(
    count: int,
    *,
    seed: int = 0,
    offset: int = 0,
    sampling: SamplingSettings | None = None,
    views: ViewSettings | None = None,
) -> list[ShapeRecord]:
    """Return records of `count` procedural shapes from shape `offset` on, in memory: those that preparing a folder would write.

    Takes some 50 ms per shape with a few thousand points; for many shapes or views, prepare a folder once, with all cores.

    Args:
        count: Number of shapes.
        seed: Seed of the set.
        offset: Number of the first shape.
        sampling: Which points; None takes the defaults, which are large.
        views: Which conditioning views; None for none.
    """
    settings = PrepareShapesSettings(
        source=PROCEDURAL,
        out="",
        count=count,
        offset=offset,
        seed=seed,
        sampling=sampling or SamplingSettings(),
        views=views or ViewSettings(num_views=0),
    )
    return [build_record(job, source_digest(job), settings) for job in find_jobs(settings)[0]]


def open_shapes(config: ShapeDataConfig) -> ShapeDataset:
    """Return the shapes of a config.

    Raises:
        ValueError: If the split is unknown or empty, or the folder cannot be read.
    """
    if config.split not in ("train", "test", "all"):
        raise ValueError(f"split is {config.split!r}, expected 'train', 'test' or 'all'")
    if config.source == PROCEDURAL:
        offset = TEST_OFFSET if config.split == "test" else 0
        records = procedural_records(
            config.count, seed=config.seed, offset=offset, sampling=config.sampling, views=config.views
        )
        return ShapeDataset(records, config.batch, classes=PROCEDURAL_CLASSES)
    folder = ShapeFolder(config.source)
    if config.split == "all":
        return ShapeDataset(folder, config.batch)
    part = folder.select([i for i, key in enumerate(folder.keys) if is_test(key) == (config.split == "test")])
    if not len(part):
        raise ValueError(
            f"the {config.split} split of {config.source!r} is empty: the folder holds {len(folder)} shapes"
        )
    return ShapeDataset(part, config.batch, classes=folder.classes)


def is_test(key: str) -> bool:
    """Return whether the shape of this key belongs to the test split: a property of the key, whatever else the folder holds."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % TEST_EVERY == 0


def _volume_queries(
    record: ShapeRecord, count: int, matrix: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return queries uniform in the cube after the transform, with their occupancy.

    Stored queries fill the cube of the stored pose; turned, they miss its corners and stick out elsewhere. A point of the new
    cube that comes from outside the stored one is outside the shape; the others are drawn from the stored queries.
    """
    box = record.meta.box
    if np.array_equal(matrix, np.eye(4)):
        chosen = rng.integers(len(record.volume_points), size=count)
        return record.volume_points[chosen].astype(np.float64), record.volume_occupancy[chosen]
    fresh = rng.uniform(-box, box, (count, 3))
    beyond = (np.abs(apply_transform(np.linalg.inv(matrix), fresh)) > box).any(axis=1)
    stored = apply_transform(matrix, record.volume_points.astype(np.float64))
    usable = np.flatnonzero((np.abs(stored) <= box).all(axis=1))
    chosen = usable[rng.integers(len(usable), size=count)]
    points = np.where(beyond[:, None], fresh, stored[chosen])
    return points, np.where(beyond, False, record.volume_occupancy[chosen])
