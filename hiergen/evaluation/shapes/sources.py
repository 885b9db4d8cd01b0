"""Which meshes are evaluated: the settings, their checks, and the meshes of a folder or of the embedded shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import procedural_shape
from hiergen.evaluation.features.extractors import check_extractor
from hiergen.evaluation.runner import Evaluation
from hiergen.evaluation.settings import check_one_given
from hiergen.evaluation.shapes.settings import PROCEDURAL, ShapesSettings
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.meshes import MESH_SUFFIXES, load_mesh, require_shape_libraries

if TYPE_CHECKING:
    import trimesh

Meshes = dict[str, "trimesh.Trimesh"]


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

    @property
    def extraction(self) -> ExtractionSettings:
        """How meshes are extracted."""
        return ExtractionSettings(depth=self.settings.depth)
