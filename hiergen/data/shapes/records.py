"""One prepared shape as a file: surface, query points with occupancy, farthest-point order, conditioning views, and where it came from.

A folder of records is `shapes.json` (what it holds) and `records/<two hex digits>/<key>.safetensors`.

Letters: `n` surface points, `m` query points, `k` ordered points, `v` views.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from hiergen.config import fingerprint
from hiergen.files import atomic_path, write_json

logger = logging.getLogger(__name__)

#: Written into every record; records of another format are refused.
FORMAT_VERSION = 1
#: Signed distances, where a record has them, are positive inside.
SDF_SIGN = "positive inside"
INDEX_NAME = "shapes.json"
#: In a folder whose preparation goes on, or was stopped.
UNFINISHED_NAME = "unfinished.json"


@dataclasses.dataclass(frozen=True)
class ShapeMeta:
    """Where a record came from and how its coordinates relate to the source's.

    Attributes:
        key: Unique name within a folder.
        class_name: Class of the shape; "" if it has none.
        source: Path of the source relative to its folder, or a description.
        source_digest: SHA-256 of the source file; of its description where there is no file.
        settings: Fingerprint of the settings that made the record.
        center: Center of the source's box, with y up; stored = (source - center) * scale.
        scale: Factor from the source's coordinates to the stored ones; see `center`.
        box: Half the side of the cube that volume queries fill.
        method: How the closed surface was made.
        sdf_sign: Sign convention of signed distances.
        version: Format of the file.
        notes: Anything worth knowing: resolution, capped holes, consistency.
    """

    key: str
    class_name: str = ""
    source: str = ""
    source_digest: str = ""
    settings: str = ""
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    box: float = 1.05
    method: str = ""
    sdf_sign: str = SDF_SIGN
    version: int = FORMAT_VERSION
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ShapeRecord:
    """One prepared shape. Coordinates are in the cube [-1.05, 1.05]^3, the shape itself in [-0.95, 0.95]^3.

    Attributes:
        meta: Origin and conventions.
        surface: Points on the surface with unit outward normals, xyz first.
        volume_points: Queries uniform in the cube of half side `meta.box`.
        volume_occupancy: Whether each of `volume_points` is inside.
        near_points: Queries near the surface, surface points with noise; may be empty.
        near_occupancy: Whether each of `near_points` is inside.
        farthest: Indices into `surface` in farthest-point order; every prefix is the farthest-point subset of its size.
        volume_sdf: Signed distances of `volume_points`, positive inside; None where the source gives none.
        near_sdf: Signed distances of `near_points`, positive inside; None where the source gives none.
        views: Conditioning images as PNG files, RGB on white.
        view_transforms: For each view the 4x4 matrix that brings the stored coordinates to the pose that was rendered.
    """

    meta: ShapeMeta
    surface: Float[np.ndarray, "n 6"]
    volume_points: Float[np.ndarray, "m 3"]
    volume_occupancy: Bool[np.ndarray, " m"]
    near_points: Float[np.ndarray, "m2 3"]
    near_occupancy: Bool[np.ndarray, " m2"]
    farthest: Integer[np.ndarray, " k"]
    volume_sdf: Float[np.ndarray, " m"] | None = None
    near_sdf: Float[np.ndarray, " m2"] | None = None
    views: tuple[bytes, ...] = ()
    view_transforms: Float[np.ndarray, "v 4 4"] | None = None

    def view(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Return one conditioning image."""
        from hiergen.data.images.files import read_image

        return np.asarray(read_image(f"view {index} of {self.meta.key}", data=self.views[index]))


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return an RGB image as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def record_path(folder: str | os.PathLike[str], key: str) -> Path:
    """Return where the record of a shape lies: records are spread over 256 folders by a hash of their keys."""
    shard = hashlib.sha256(key.encode()).hexdigest()[:2]
    return Path(folder) / "records" / shard / f"{key}.safetensors"


def save_record(record: ShapeRecord, path: str | os.PathLike[str]) -> None:
    """Write a record, atomically. The same record gives the same bytes."""
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {
        "surface": record.surface,
        "volume_points": record.volume_points,
        "volume_occupancy": np.packbits(record.volume_occupancy),
        "near_points": record.near_points,
        "near_occupancy": np.packbits(record.near_occupancy),
        "farthest": record.farthest.astype(np.int32),
    }
    for name in ("volume_sdf", "near_sdf", "view_transforms"):
        value = getattr(record, name)
        if value is not None:
            tensors[name] = value
    if record.views:
        tensors["views"] = np.frombuffer(b"".join(record.views), np.uint8)
        tensors["view_sizes"] = np.array([len(view) for view in record.views], np.int64)
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"shape": json.dumps(dataclasses.asdict(record.meta), sort_keys=True)})


def load_meta(path: str | os.PathLike[str]) -> ShapeMeta:
    """Return the origin of a record, reading its header alone.

    Raises:
        ValueError: If the file is no record of this format; the file is named.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("shape")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"shape record {str(path)!r} cannot be read: {error}") from error
    if text is None:
        raise ValueError(f"{str(path)!r} is a safetensors file, but no shape record")
    values = json.loads(text)
    if values.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"shape record {str(path)!r} has format {values.get('version')}, this version reads {FORMAT_VERSION}; prepare it again"
        )
    values["center"] = tuple(values["center"])
    return ShapeMeta(**values)


def load_record(path: str | os.PathLike[str]) -> ShapeRecord:
    """Return the record that `save_record` wrote.

    Raises:
        ValueError: If the file is no record of this format; the file is named.
    """
    from safetensors.numpy import load_file

    meta = load_meta(path)
    tensors = load_file(path)
    for kind in ("volume", "near"):
        count = len(tensors[f"{kind}_points"])
        tensors[f"{kind}_occupancy"] = np.unpackbits(tensors[f"{kind}_occupancy"], count=count).astype(bool)
    data, sizes = tensors.pop("views", None), tensors.pop("view_sizes", None)
    views: tuple[bytes, ...] = ()
    if data is not None and sizes is not None:
        ends = np.cumsum(sizes)
        views = tuple(data[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True))
    return ShapeRecord(meta=meta, views=views, **tensors)


def write_index(folder: str | os.PathLike[str], metas: Sequence[ShapeMeta], settings: Any) -> None:
    """Write `shapes.json`: the classes and every record of the folder, in order of their keys."""
    metas = sorted(metas, key=lambda meta: meta.key)
    entries = [
        {
            "key": meta.key,
            "class": meta.class_name,
            "source": meta.source,
            "path": record_path("", meta.key).as_posix(),
        }
        for meta in metas
    ]
    classes = sorted({meta.class_name for meta in metas})
    value = {"version": FORMAT_VERSION, "settings": settings, "classes": classes, "shapes": entries}
    write_json(Path(folder) / INDEX_NAME, value)


def stopped_preparation(folder: Path) -> str | None:
    """Return what to tell of a folder whose preparation was stopped: how far it was, and what to run again; None of any other."""
    try:
        state = json.loads((folder / UNFINISHED_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    done = sum(1 for _ in (folder / "records").rglob("*.safetensors"))
    command = f": {state['command']}" if state["command"] else ""
    return f"its preparation was stopped after {done:,} of {state['total']:,}: run it again{command}"


class ShapeFolder(Sequence[ShapeRecord]):
    """The records of a prepared folder, read from disk when asked for.

    Raises:
        ValueError: If the folder has no readable `shapes.json`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        index = self._folder / INDEX_NAME
        try:
            value = json.loads(index.read_text(encoding="utf-8"))
            version, shapes, classes = value["version"], value["shapes"], value["classes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = stopped_preparation(self._folder) or "write one with `hiergen prepare-shapes`"
            raise ValueError(
                f"shape folder {str(folder)!r} has no readable {INDEX_NAME} ({type(error).__name__}: {error}); {remedy}"
            ) from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{str(index)!r} has format {version}, this version reads {FORMAT_VERSION}; prepare it again"
            )
        self.classes: tuple[str, ...] = tuple(classes)
        self._shapes: list[dict[str, str]] = shapes
        self.fingerprint: str = fingerprint(value)
        if stopped := stopped_preparation(self._folder):
            logger.warning("shape folder %r: %s; it is read as it is", str(folder), stopped)

    def select(self, indices: Sequence[int]) -> ShapeFolder:
        """Return a part of the folder; its classes remain those of the whole."""
        part = copy.copy(self)
        part._shapes = [self._shapes[index] for index in indices]
        part.fingerprint = fingerprint({"folder": self.fingerprint, "keys": list(part.keys)})
        return part

    @property
    def paths(self) -> list[Path]:
        """The file of each record."""
        return [self._folder / shape["path"] for shape in self._shapes]

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(shape["key"] for shape in self._shapes)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(shape["class"] for shape in self._shapes)

    @overload
    def __getitem__(self, index: int) -> ShapeRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShapeRecord]: ...

    def __getitem__(self, index: int | slice) -> ShapeRecord | list[ShapeRecord]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return load_record(self._folder / self._shapes[index]["path"])
