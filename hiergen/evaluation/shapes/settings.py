"""Settings of evaluations of shapes, importable without PyTorch."""

from __future__ import annotations

import dataclasses

from hiergen.checked import Checked
from hiergen.evaluation.settings import ExtractorConfig, GeneratorSettings, PassConfig, check_resamples, check_seed
from hiergen.metrics.geometry import GeometryProtocol, ShapeSetProtocol

PROCEDURAL = "procedural"


@dataclasses.dataclass(frozen=True)
class RenderedViewsConfig(Checked):
    """Which views of meshes are compared, and by which features.

    Attributes:
        num_views: Number of views of each mesh, from equal steps of azimuth, 20 degrees above the horizon; 0 leaves views out.
        size: Height and width of a view in pixels.
        extractor: Feature extractor of the views: on "inception" the Fréchet distance is an FID of clay renders.
    """

    num_views: int = 0
    size: int = 224
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_views < 0:
            raise ValueError(f"num_views is {self.num_views}, expected at least 0 (none)")
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel")

    def __str__(self) -> str:
        return (
            f"{self.num_views} clay renders of each shape, {self.size} x {self.size} pixels, filling the picture, from equal steps "
            "of azimuth, 20 degrees above the horizon"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesSettings(GeneratorSettings):
    """Evaluate meshes. Give one of `shapes`, `pipeline` and `tokenizer`.

    Attributes:
        shapes: Folder of the meshes to judge.
        reference: Folder of the meshes they should resemble, or "procedural", the embedded shapes (held-out ones). Files of the same
            name are compared as pairs.
        pipeline: Folder or Hub id of a pipeline that generates meshes from class labels.
        tokenizer: Folder or Hub id of a tokenizer of shapes, which rebuilds the reference from each of its levels.
        num_reference: Number of embedded shapes to make.
        num_shapes: Number of shapes to generate.
        depth: Meshes are extracted on a grid of 2**depth cells along each axis.
        resamples: Number of bootstrap draws behind each confidence interval; 0 leaves intervals out.
        sets: How two sets are compared.
        pairs: How a shape is compared with its own reference.
        views: Rendered views of both sets, whose features are compared too; none by default.
    """

    shapes: str = ""
    reference: str = PROCEDURAL
    out: str = "evaluation/shapes"
    tokenizer: str = ""
    num_reference: int = 64
    num_shapes: int = 64
    depth: int = 6
    resamples: int = 200
    sets: ShapeSetProtocol = dataclasses.field(default_factory=ShapeSetProtocol)
    pairs: GeometryProtocol = dataclasses.field(default_factory=GeometryProtocol)
    views: RenderedViewsConfig = dataclasses.field(default_factory=RenderedViewsConfig)
    passes: PassConfig = dataclasses.field(default_factory=lambda: PassConfig(batch_size=8, part_size=16))

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_reference", "num_shapes", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.tokenizer and self.views.num_views:
            raise ValueError("views compare sets, and a tokenizer is scored shape by shape: leave views.num_views at 0")
        check_resamples(self.resamples)
        check_seed(self.seed)
