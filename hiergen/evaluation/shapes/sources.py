"""Which meshes are evaluated: the settings, their checks, and the meshes of a folder or of the embedded shapes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import procedural_shape
from hiergen.evaluation.features.distances import check_resamples
from hiergen.evaluation.features.extractors import check_extractor
from hiergen.evaluation.protocol import PassConfig, check_seed
from hiergen.evaluation.runner import Evaluation
from hiergen.evaluation.settings import GeneratorSettings, check_one_given
from hiergen.evaluation.shapes.views import RenderedViewsConfig
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.meshes import MESH_SUFFIXES, load_mesh, require_shape_libraries
from hiergen.metrics.geometry import GeometryProtocol
from hiergen.metrics.shape_sets import ShapeSetProtocol

if TYPE_CHECKING:
    import trimesh

PROCEDURAL = "procedural"
Meshes = dict[str, "trimesh.Trimesh"]


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
        for name in ("num_reference", "num_shapes", "depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.tokenizer and self.views.num_views:
            raise ValueError("views compare sets, and a tokenizer is scored shape by shape: leave views.num_views at 0")
        check_resamples(self.resamples)
        check_seed(self.seed)

    @property
    def extraction(self) -> ExtractionSettings:
        """How meshes are extracted."""
        return ExtractionSettings(depth=self.depth)


def list_meshes(source: str) -> list[Path]:
    """Return the mesh files of a folder, sorted; none for the embedded shapes.

    Raises:
        ValueError: If the folder is missing or holds fewer than two.
    """
    if source == PROCEDURAL:
        return []
    root = Path(source)
    if not root.is_dir():
        raise ValueError(f"mesh folder {source!r} does not exist")
    paths = sorted(path for path in root.iterdir() if path.suffix.lower() in MESH_SUFFIXES)
    if len(paths) < 2:
        raise ValueError(
            f"mesh folder {source!r} holds {len(paths)} meshes ({', '.join(MESH_SUFFIXES)}), expected at least 2"
        )
    return paths


def open_meshes(source: str, settings: ShapesSettings) -> Meshes:
    """Return the meshes of a folder by the names of their files, or the embedded shapes.

    Raises:
        ValueError: If the folder is missing, holds fewer than two meshes, or one cannot be read.
    """
    paths = list_meshes(source)
    if source == PROCEDURAL:
        shapes = [procedural_shape(TEST_OFFSET + k) for k in range(settings.num_reference)]
        return {f"{shape.class_name}-{k:03d}": shape.to_mesh() for k, shape in enumerate(shapes)}
    return {path.stem: load_mesh(path) for path in paths}


class ShapesEvaluation(Evaluation[ShapesSettings]):
    """What evaluations of shapes share: their kind, what is checked, and the settings that a report keeps."""

    kind = "shapes"

    def check(self) -> None:
        settings = self.settings
        require_shape_libraries()
        check_one_given(settings, "shapes", "pipeline", "tokenizer")
        if settings.views.num_views:
            check_extractor(settings.views.extractor)
        for source in (settings.shapes, settings.reference):
            if source:
                list_meshes(source)

    def saved_settings(self) -> dict[str, Any]:
        return {**super().saved_settings(), "distances": {"resamples": self.settings.resamples}}
