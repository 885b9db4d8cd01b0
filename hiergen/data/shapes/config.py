"""Settings of the shapes that a run takes, importable without PyTorch; `hiergen.data.shapes.dataset` opens them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from hiergen.checked import Checked
from hiergen.data.shapes.views import ViewSettings
from hiergen.geometry.surface_sampling import SamplingSettings

Split = Literal["train", "test", "all"]


@dataclasses.dataclass(frozen=True)
class ShapeBatchConfig(Checked):
    """What one sample holds and how it is augmented.

    Attributes:
        num_points: Number of surface points, a random subset of the stored ones.
        num_ordered: Number of surface points, from the front, that are in farthest-point order, so that coarser clouds are
            prefixes; 0 orders none.
        num_queries: Number of query points; those in the volume come first, those near the surface after them.
        near_fraction: Share of the queries that are near the surface.
        yaw: Turn every sample by a random angle about the y axis and fit it into [-0.95, 0.95]^3 again.
        mirror: Mirror every other sample at the plane x = 0.
        min_scale: Shrink samples by a random factor from this to 1.
        image: Also return one of the record's views in [-1, 1], the points being brought to the pose it shows. Excludes the
            other augmentations.
    """

    num_points: int = 16_384
    num_ordered: int = 0
    num_queries: int = 2048
    near_fraction: float = 0.5
    yaw: bool = False
    mirror: bool = False
    min_scale: float = 1.0
    image: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_points < 1 or self.num_queries < 1:
            raise ValueError(f"num_points is {self.num_points}, num_queries {self.num_queries}, expected at least 1")
        if not 0 <= self.num_ordered <= self.num_points:
            raise ValueError(f"num_ordered is {self.num_ordered}, expected 0 to num_points = {self.num_points}")
        if not 0 <= self.near_fraction <= 1:
            raise ValueError(f"near_fraction is {self.near_fraction}, expected 0 to 1")
        if not 0 < self.min_scale <= 1:
            raise ValueError(f"min_scale is {self.min_scale}, expected above 0 and at most 1")
        if self.image and (self.yaw or self.mirror or self.min_scale != 1):
            raise ValueError(
                "image excludes yaw, mirror and min_scale: the points must stay in the pose that the image shows"
            )

    @property
    def num_near(self) -> int:
        """Number of near queries of a sample; they come last."""
        return round(self.num_queries * self.near_fraction)


@dataclasses.dataclass(frozen=True)
class ShapeDataConfig(Checked):
    """Where shapes come from.

    Attributes:
        source: "procedural" (embedded, made in memory) or a folder that `hiergen prepare-shapes` wrote.
        split: Split of the shapes: "train", "test" or "all". A tenth of a folder, by a hash of the keys, is the test split.
        count: Number of procedural shapes.
        seed: Seed of the procedural shapes.
        sampling: Number and kinds of the points of procedural shapes.
        views: Conditioning views of procedural shapes.
        batch: Points, queries and augmentation of a sample.
    """

    source: str = "procedural"
    split: Split = "train"
    count: int = 256
    seed: int = 0
    sampling: SamplingSettings = dataclasses.field(
        default_factory=lambda: SamplingSettings(num_surface=8192, num_volume=16_384, num_near=8192, num_farthest=0)
    )
    views: ViewSettings = dataclasses.field(default_factory=lambda: ViewSettings(num_views=0))
    batch: ShapeBatchConfig = dataclasses.field(default_factory=lambda: ShapeBatchConfig(num_points=4096))
