"""Which meshes are evaluated, as settings, and where they come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiergen.data.shapes.dataset import TEST_OFFSET
from hiergen.data.shapes.procedural import procedural_shape
from hiergen.evaluation.features.distances import check_resamples
from hiergen.evaluation.images.sampling import LabelRule, SamplingConfig, TokenSource
from hiergen.evaluation.parts import run_parts
from hiergen.evaluation.protocol import PassConfig, check_seed
from hiergen.evaluation.shapes.views import RenderedViewsConfig
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.meshes import MESH_SUFFIXES, load_mesh
from hiergen.geometry.surface_extraction import save_mesh
from hiergen.metrics.geometry import GeometryProtocol
from hiergen.metrics.shape_sets import ShapeSetProtocol
from hiergen.pipelines.shape import decode_meshes

if TYPE_CHECKING:
    import trimesh

PROCEDURAL = "procedural"
Meshes = dict[str, "trimesh.Trimesh"]


@dataclasses.dataclass(frozen=True)
class ShapesSettings:
    """Evaluate meshes. Give one of `shapes`, `pipeline` and `tokenizer`.

    Attributes:
        shapes: Folder of the meshes to judge.
        reference: Folder of the meshes they should resemble, or "procedural", the embedded shapes (held-out ones). Files of the same
            name are compared as pairs.
        out: Folder of the report. Run again to continue or to draw it anew.
        pipeline: Folder or Hub id of a pipeline that generates meshes from class labels.
        tokenizer: Folder or Hub id of a tokenizer of shapes: the reference is rebuilt by it, from each of its levels.
        num_reference: Embedded shapes to make.
        num_shapes: Shapes to generate.
        labels: "balanced" or "iid" class labels; see the report.
        seed: Of all random draws, with the index of the shape.
        sampling: Settings of the generator.
        depth: Meshes are extracted on a grid of 2**depth cells an axis.
        resamples: Bootstrap draws of each confidence interval; 0 leaves intervals out.
        sets: How two sets are compared.
        pairs: How a shape is compared with its own reference.
        views: Rendered views of both sets, whose features are compared too; none by default.
        passes: Batch size, part size, device.
    """

    shapes: str = ""
    reference: str = PROCEDURAL
    out: str = "evaluation/shapes"
    pipeline: str = ""
    tokenizer: str = ""
    num_reference: int = 64
    num_shapes: int = 64
    labels: LabelRule = "balanced"
    seed: int = 0
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
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


def open_generator(settings: ShapesSettings, device: torch.device) -> TokenSource:
    """Return what draws the tokens of shapes.

    Raises:
        ValueError: If the pipeline does not make meshes from class labels.
    """
    tokens = TokenSource(
        settings.pipeline, labels=settings.labels, sampling=settings.sampling, seed=settings.seed, device=device
    )
    if tokens.kind != "ClassToShapePipeline":
        raise ValueError(f"{settings.pipeline!r} holds a {tokens.kind}, expected a ClassToShapePipeline")
    return tokens


def generated_identity(tokens: TokenSource, settings: ShapesSettings) -> dict[str, Any]:
    """Return JSON values that generated meshes depend on."""
    return {**tokens.identity, "kind": "shapes", "depth": settings.depth}


def generate_meshes(tokens: TokenSource, settings: ShapesSettings, out: Path) -> Meshes | None:
    """Generate meshes as GLB files in `out/meshes` and return them; None on all processes but the main one.

    A shape without a surface gets no file: it is missing in what is returned.
    """

    def compute(keys: range, _: None) -> dict[str, Tensor]:
        made = decode_meshes(tokens.tokenizer, tokens.draw(keys), settings.extraction)  # type: ignore[arg-type]
        for key, mesh in zip(keys, made, strict=True):
            if len(mesh.faces):
                save_mesh(mesh, out / "meshes" / f"{key:06d}.glb")
        return {"faces": torch.tensor([len(mesh.faces) for mesh in made])}

    identity = generated_identity(tokens, settings)
    parts = run_parts(
        out / "parts", identity, settings.num_shapes, compute, passes=settings.passes, what="generate shapes"
    )
    if parts is None:
        return None
    found = [key for key, faces in enumerate(parts.read("faces").tolist()) if faces]
    return {f"{key:06d}": load_mesh(out / "meshes" / f"{key:06d}.glb") for key in found}
