"""One shape from its source to its record: read, normalize, close, sample, render. Doing so for many is `preparation`."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hiergen.checked import Checked
from hiergen.config import fingerprint, to_json
from hiergen.data.files.folders import is_hidden
from hiergen.data.shapes.importers import find_layout_files, import_shape
from hiergen.data.shapes.procedural import procedural_shape
from hiergen.data.shapes.records import FORMAT_VERSION, ShapeMeta, ShapeRecord
from hiergen.data.shapes.views import ViewSettings, render_views
from hiergen.files import file_digest
from hiergen.geometry.mesh_union import split_parts
from hiergen.geometry.meshes import MESH_SUFFIXES, MeshError, MeshLimits, external_buffers, load_mesh
from hiergen.geometry.poses import apply_transform, fit_transform
from hiergen.geometry.ray_crossings import contains
from hiergen.geometry.surface_sampling import SamplingSettings, sample_shape
from hiergen.geometry.watertight import WatertightSettings, make_watertight

if TYPE_CHECKING:
    import trimesh

#: The source of settings that names the embedded set.
PROCEDURAL = "procedural"
#: Coordinates that agree to this, at a longest side of 1.9, are the same.
GEOMETRY_STEP = 1e-4
#: Volume below which a shape has no inside to learn, in a cube of 9.
MIN_VOLUME = 1e-4

#: What records are made of at the sizes of a paper, which are the defaults, and at those of the tiny recipes.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "tiny": {
        "watertight": {"resolutions": [64]},
        "sampling": {"num_surface": 8192, "num_volume": 16_384, "num_near": 8192, "num_farthest": 1024},
        "views": {"num_views": 0},
    },
}

_UP = {
    "y": np.eye(3),
    "z": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "x": np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]]),
}


@dataclasses.dataclass(frozen=True)
class PrepareShapesSettings(Checked):
    """What to prepare, and how.

    Attributes:
        source: A folder of meshes, a single mesh file, or "procedural" for the embedded set.
        out: Folder of the records that are written.
        layout: "meshes", or a layout of prepared arrays to import: "sdf" (CraftsMan), "occupancy" (occupancy networks)
            or "vecset" (3DShape2VecSet).
        classes_from: A shape's class is the name of its "folder", its file "name" up to the first digit, underscore or
            dash, or there are none ("none").
        up_axis: Axis of the source that points up; it becomes y.
        count: Number of procedural shapes.
        offset: Number of the first procedural shape.
        seed: Seed of all random draws.
        limits: Sizes that are too large to read.
        watertight: Settings of how surfaces are closed.
        sampling: Number and kinds of the points of a record.
        views: Number and kinds of the conditioning views of a record.
        num_workers: Number of processes; None takes one per core, 0 works in the calling process, where a crash is not contained.
        timeout: Seconds after which a shape is given up.
        keep_duplicates: Also list shapes whose file or surface equals an earlier one's (assets that differ in color alone);
            duplicates in the training split of what is in the test split would be a leak.
        retry_skipped: Try again what an earlier run skipped.
        show_progress: Draw a progress bar on standard error.
    """

    source: str
    out: str
    layout: Literal["meshes", "sdf", "occupancy", "vecset"] = "meshes"
    classes_from: Literal["folder", "name", "none"] = "folder"
    up_axis: Literal["x", "y", "z"] = "y"
    count: int = 256
    offset: int = 0
    seed: int = 0
    limits: MeshLimits = dataclasses.field(default_factory=MeshLimits)
    watertight: WatertightSettings = dataclasses.field(default_factory=WatertightSettings)
    sampling: SamplingSettings = dataclasses.field(default_factory=SamplingSettings)
    views: ViewSettings = dataclasses.field(default_factory=ViewSettings)
    num_workers: int | None = None
    timeout: float = 600.0
    keep_duplicates: bool = False
    retry_skipped: bool = False
    show_progress: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (
            ("layout", ("meshes", "sdf", "occupancy", "vecset")),
            ("classes_from", ("folder", "name", "none")),
            ("up_axis", tuple(_UP)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(options)}")
        if self.count < 1 or self.offset < 0 or self.seed < 0:
            raise ValueError(
                f"count is {self.count}, offset {self.offset}, seed {self.seed}; expected at least 1, 0 and 0"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout}, expected seconds above 0")

    def record_settings(self) -> dict[str, Any]:
        """Return as JSON values what a record depends on besides its source."""
        names = ("layout", "up_axis", "seed", "watertight", "sampling", "views")
        return {"version": FORMAT_VERSION, **{name: to_json(getattr(self, name)) for name in names}}

    def record_fingerprint(self) -> str:
        """Return what changes when records would come out differently."""
        return fingerprint(self.record_settings())


@dataclasses.dataclass(frozen=True)
class ShapeJob:
    """One shape to prepare.

    Attributes:
        key: Name of its record.
        class_name: Class of the shape.
        source: Path relative to the source folder, or a description.
        path: Path of the file; None for a procedural shape.
        number: Number of the procedural shape.
    """

    key: str
    class_name: str
    source: str
    path: str | None = None
    number: int = 0


def find_jobs(settings: PrepareShapesSettings) -> tuple[list[ShapeJob], dict[str, int]]:
    """Return the shapes of a source in a fixed order, and how many files of each other suffix there are.

    Raises:
        ValueError: If the source does not exist or holds no shapes.
    """
    if settings.source == PROCEDURAL:
        numbers = range(settings.offset, settings.offset + settings.count)
        return [_procedural_job(number, settings.seed) for number in numbers], {}
    root = Path(settings.source)
    if not root.exists():
        raise ValueError(
            f"shape source {settings.source!r} does not exist; give a folder, a mesh file or {PROCEDURAL!r}"
        )
    if settings.layout != "meshes":
        found, ignored = find_layout_files(root, settings.layout), {}
    else:
        # What is no regular file (a link to nothing, a pipe) is listed too, so that it is skipped by name.
        files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if not path.is_dir())
        files = [path for path in files if path == root or not is_hidden(path.relative_to(root).as_posix())]
        found = [path for path in files if path.suffix.lower() in MESH_SUFFIXES]
        ignored = count_names(path.suffix.lower() for path in files if path.suffix.lower() not in MESH_SUFFIXES)
    if not found:
        wanted = ", ".join(MESH_SUFFIXES) if settings.layout == "meshes" else f"layout {settings.layout!r}"
        raise ValueError(f"shape source {settings.source!r} holds no shapes ({wanted})")
    base = root.parent if root.is_file() else root
    return [_file_job(path, base, settings) for path in found], ignored


def build_record(job: ShapeJob, digest: str, settings: PrepareShapesSettings) -> ShapeRecord:
    """Return the record of one shape.

    Raises:
        ValueError: If the shape cannot be used (`MeshError` if its file cannot be read).
    """
    # Seeded by the content alone: neither the name of the file nor the order of work has a say.
    rng = np.random.default_rng([settings.seed, int(digest[:16], 16)])
    meta = ShapeMeta(
        job.key, job.class_name, job.source, digest, settings.record_fingerprint(), box=settings.sampling.box
    )
    if job.path is None:
        shape = procedural_shape(job.number, seed=settings.seed)
        mesh, inside = shape.to_mesh(), shape.solid.contains
        shown = mesh
        meta = dataclasses.replace(meta, method=PROCEDURAL)
    elif settings.layout != "meshes":
        arrays = import_shape(job.path, settings.layout, num_farthest=settings.sampling.num_farthest)
        box = float(np.abs(arrays["volume_points"]).max())
        return ShapeRecord(meta=dataclasses.replace(meta, method=f"imported {settings.layout}", box=box), **arrays)
    else:
        # Views show the source: what was remeshed has a hundred times the faces and no sharp edges.
        shown = load_mesh(job.path, settings.limits)
        mesh, meta = _close(shown, meta, settings, rng)

        def inside(points: np.ndarray) -> np.ndarray:
            return contains(mesh.triangles, points)

    arrays = sample_shape(mesh, inside, settings.sampling, rng)
    views, transforms = render_views(shown, settings.views, rng=rng)
    if not views:
        return ShapeRecord(meta=meta, **arrays)
    return ShapeRecord(meta=meta, views=views, view_transforms=transforms, **arrays)


def source_digest(job: ShapeJob) -> str:
    """Return the SHA-256 of a shape's file, or of its description if it has none.

    Where the file keeps its numbers in others, the digest is that of all their digests.

    Raises:
        MeshError: If the file cannot be read.
    """
    if job.path is None:
        return hashlib.sha256(job.source.encode()).hexdigest()
    try:
        # Looked at before it is opened: opening a pipe waits for its other end.
        if not stat.S_ISREG(os.stat(job.path).st_mode):
            raise MeshError(job.path, "is not a regular file")
        digests = [file_digest(path) for path in (Path(job.path), *external_buffers(job.path))]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    except OSError as error:
        raise MeshError(job.path, f"cannot be read ({error.strerror})") from error


def _close(
    mesh: trimesh.Trimesh, meta: ShapeMeta, settings: PrepareShapesSettings, rng: np.random.Generator
) -> tuple[trimesh.Trimesh, ShapeMeta]:
    """Normalize a mesh in place; return its closed surface and how that was made."""
    num_faces, num_parts, was_closed = len(mesh.faces), len(split_parts(mesh)), bool(mesh.is_watertight)
    up = _UP[settings.up_axis]
    vertices = np.asarray(mesh.vertices, np.float64)
    matrix = fit_transform(vertices, up)
    scale = float(np.linalg.norm(matrix[0, :3]))
    center = -matrix[:3, 3] / scale
    mesh.vertices = apply_transform(matrix, vertices)
    closed = make_watertight(mesh, settings.watertight, rng=rng)
    volume = float(closed.mesh.volume)
    if volume < MIN_VOLUME:
        raise ValueError(f"encloses almost nothing: a volume of {volume:.2g} at a longest side of 1.9")
    surface = np.rint(np.asarray(mesh.vertices) / GEOMETRY_STEP).astype(np.int64).tobytes() + mesh.faces.tobytes()
    notes = {
        "geometry": hashlib.sha256(surface).hexdigest(),
        "faces": num_faces,
        "parts": num_parts,
        "was_closed": was_closed,
        "volume": round(volume, 5),
        **closed.notes,
    }
    return closed.mesh, dataclasses.replace(
        meta, center=tuple(center.tolist()), scale=scale, method=closed.method, notes=notes
    )


def _procedural_job(number: int, seed: int) -> ShapeJob:
    shape = procedural_shape(number, seed=seed)
    name = shape.class_name
    return ShapeJob(f"{name}-{seed}-{number}", name, f"procedural shape {number} of seed {seed}", number=number)


def _file_job(path: Path, base: Path, settings: PrepareShapesSettings) -> ShapeJob:
    source = path.relative_to(base)
    # Where a folder holds the files of one shape, its name is the shape's.
    stem = path.parent.name if settings.layout == "occupancy" else path.stem
    parent = path.parent.parent if settings.layout == "occupancy" else path.parent
    class_name = ""
    if settings.classes_from == "folder":
        class_name = parent.name if parent != base else ""
    elif settings.classes_from == "name":
        class_name = re.split(r"[\d_\-. ]", stem, maxsplit=1)[0].lower()
    tag = hashlib.sha256(source.as_posix().encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:80]
    return ShapeJob(f"{name}-{tag}", class_name, source.as_posix(), str(path))


def count_names(values: Iterable[str]) -> dict[str, int]:
    """Return how often each name occurs, in order of the names."""
    return dict(sorted(collections.Counter(values).items()))
