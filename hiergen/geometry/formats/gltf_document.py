"""The container of glTF 2.0: its JSON, its buffers, and the numbers that its accessors say lie in them.

Source: Khronos Group, glTF 2.0 Specification, sections 3.6 (buffers, accessors), 4 (GLB).

Letters: `n` elements of an accessor, `k` components of an element.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np

from hiergen.geometry.formats.polygons import MeshLimits, Refused

_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_ELEMENT_SIZES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
#: Extensions that change positions or faces and are read.
READ_EXTENSIONS = frozenset({"KHR_mesh_quantization", "EXT_mesh_gpu_instancing", "KHR_node_visibility"})
_COMPRESSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
#: Beginnings of the names of extensions that say nothing about where a surface is.
_WITHOUT_GEOMETRY = (
    "KHR_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_",
    "MSFT_packing_", "ADOBE_materials_", "KHR_lights_", "EXT_lights_",
    "KHR_xmp", "KHR_animation_", "KHR_audio", "KHR_node_selectability",
    "KHR_node_hoverability", "KHR_techniques_", "KHR_interactivity", "EXT_mesh_features",
    "EXT_instance_features", "EXT_structural_metadata", "EXT_feature_metadata", "AGI_",
    "VRM", "VRMC_", "EXT_property_",
)  # fmt: skip


def is_harmless(extension: str) -> bool:
    """Return whether an extension says nothing about where a surface is."""
    return extension.startswith(_WITHOUT_GEOMETRY)


def buffer_files(document: dict[str, Any], folder: Path) -> list[Path | None]:
    """Return for each buffer the file beside the document that holds it; None for one that is in the document.

    Raises:
        Refused: If it is not in the folder of the document, or below.
    """
    files: list[Path | None] = []
    for item in document.get("buffers", []):
        uri = item.get("uri", "data:")
        if uri.startswith("data:"):
            files.append(None)
            continue
        file = (folder / unquote(uri)).resolve()
        if "://" in uri or not file.is_relative_to(folder.resolve()):
            raise Refused(f"refers to another file, {uri[:80]!r}, that is not in its folder")
        files.append(file)
    return files


class Document:
    """A glTF file.

    Attributes:
        json: Description of scenes, nodes, meshes, accessors, buffers.
    """

    json: dict[str, Any]

    def __init__(self, data: bytes, folder: Path, limits: MeshLimits) -> None:
        text, self._binary = _split_glb(data) if data[:4] == b"glTF" else (data.removeprefix(b"\xef\xbb\xbf"), b"")
        self.json = json.loads(text)
        version = str(self.json["asset"]["version"])
        if version.partition(".")[0] != "2":
            raise Refused(f"is glTF {version[:20]}, expected 2")
        self._limits = limits
        self._check_extensions()
        self._check_sizes(folder)
        self._buffers: dict[int, bytes] = {}

    def list(self, name: str) -> list[dict[str, Any]]:
        """Return one of the lists at the top of the description; empty if there is none."""
        found = self.json.get(name, [])
        if not isinstance(found, list):
            raise Refused(f"has a damaged glTF description ({name!r} is no list)")
        return found

    def _check_extensions(self) -> None:
        for name in self.json.get("extensionsRequired", []):
            if name in _COMPRESSIONS:
                raise Refused(f"is compressed with {name}; store it uncompressed")
            if name not in READ_EXTENSIONS and not is_harmless(name):
                raise Refused(f"requires the glTF extension {name}, which is not known here")

    def _check_sizes(self, folder: Path) -> None:
        """Compare what the accessors claim with what the buffers have, before anything is read."""
        self._files = buffer_files(self.json, folder)
        available = len(self._binary)
        for item, file in zip(self.list("buffers"), self._files, strict=True):
            if file is not None:
                if not file.is_file():
                    raise Refused(f"refers to another file, {item['uri'][:80]!r}, that is not there")
                available += file.stat().st_size
            available += len(item.get("uri", ""))
        if available > 2 * self._limits.max_bytes:
            raise Refused(f"has {available:,} bytes with its buffers, at most {self._limits.max_bytes:,} are read")
        for number, accessor in enumerate(self.list("accessors")):
            count = accessor["count"]
            size = np.dtype(_COMPONENTS[accessor["componentType"]]).itemsize * _ELEMENT_SIZES[accessor["type"]]
            if type(count) is not int or count < 0:
                raise Refused(f"has a glTF accessor {number} of {count!r} elements")
            if "bufferView" in accessor:
                if count * size > available:
                    raise Refused(
                        f"claims {count * size:,} bytes in glTF accessor {number}, the file has {available:,}"
                    )
            elif count > 3 * self._limits.max_faces:
                # Without a view the elements are zeros that cost the file nothing and the reader everything.
                raise Refused(f"claims {count:,} elements in glTF accessor {number}, which has no data")

    def _buffer(self, index: Any) -> bytes:
        if index not in self._buffers:
            item, file = self.list("buffers")[index], self._files[index]
            if file is not None:
                self._buffers[index] = file.read_bytes()
            elif "uri" in item:
                head, _, content = item["uri"].partition(",")
                is_base64 = head.endswith(";base64")
                self._buffers[index] = base64.b64decode(unquote(content)) if is_base64 else unquote_to_bytes(content)
            elif index == 0:
                self._buffers[index] = self._binary
            else:
                raise Refused(f"has a glTF buffer {index} without data")
        return self._buffers[index]

    def _view(self, index: Any, offset: Any, count: Any, dtype: np.dtype, width: int) -> np.ndarray:
        view = self.list("bufferViews")[index]
        compression = next((name for name in _COMPRESSIONS if name in view.get("extensions", {})), None)
        if compression and "uri" not in self.list("buffers")[view["buffer"]] and (view["buffer"] or not self._binary):
            raise Refused(f"is compressed with {compression}; store it uncompressed")
        if index < 0 or view["buffer"] < 0:
            raise Refused("has a negative index in its glTF description")
        data = self._buffer(view["buffer"])
        begin, length = view.get("byteOffset", 0), view["byteLength"]
        size = dtype.itemsize * width
        stride = view.get("byteStride", size)
        stop = offset + (count - 1) * stride + size
        if min(begin, offset, stride, length) < 0 or (count and (stop > length or begin + length > len(data))):
            raise Refused(
                f"has a glTF accessor that reads to byte {begin + stop:,} of a view of {length:,} in {len(data):,}"
            )
        return (
            np.ndarray((count, width), dtype, data, begin + offset, (stride, dtype.itemsize))
            if count
            else np.zeros((0, width), dtype)
        )

    def accessor(self, index: Any, kinds: str = "VEC3") -> np.ndarray:
        """Return the elements of an accessor, "n k": numbers of type float64, or integers unless they are normalized.

        Args:
            index: Number of the accessor.
            kinds: Types of element that are expected, e.g. "VEC3".
        """
        if type(index) is not int or index < 0:
            raise Refused(f"has {index!r} as the number of a glTF accessor")
        item = self.list("accessors")[index]
        if item["type"] not in kinds.split():
            raise Refused(f"has a glTF accessor {index} of type {item['type']}, expected {kinds}")
        dtype, width, count = np.dtype(_COMPONENTS[item["componentType"]]), _ELEMENT_SIZES[item["type"]], item["count"]
        if "bufferView" in item:
            values = self._view(item["bufferView"], item.get("byteOffset", 0), count, dtype, width)
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in item:
            values = self._sparse(values, item["sparse"])
        if dtype.kind == "f":
            return values.astype(np.float64)
        if item.get("normalized"):
            largest = np.iinfo(dtype).max
            return np.maximum(values / largest, -1.0)
        return values.astype(np.int64)

    def _sparse(self, values: np.ndarray, sparse: dict[str, Any]) -> np.ndarray:
        count, where, what = sparse["count"], sparse["indices"], sparse["values"]
        kind = np.dtype(_COMPONENTS[where["componentType"]])
        places = self._view(where["bufferView"], where.get("byteOffset", 0), count, kind, 1)[:, 0]
        changed = values.copy()
        changed[places] = self._view(
            what["bufferView"], what.get("byteOffset", 0), count, values.dtype, values.shape[1]
        )
        return changed


def _split_glb(data: bytes) -> tuple[bytes, bytes]:
    """Return the two chunks of a GLB file, JSON and binary."""
    _, version, length, chunk, kind = struct.unpack_from("<4sIII4s", data)
    if version != 2:
        raise Refused(f"is glTF {version}, expected 2")
    if length > len(data) or chunk + 20 > len(data) or kind != b"JSON":
        raise Refused(f"is truncated: its header says {length:,} bytes, it has {len(data):,}")
    at = 20 + chunk
    while at + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, at)
        if kind == b"BIN\0":
            if at + 8 + size > len(data):
                raise Refused(f"is truncated: its binary chunk says {size:,} bytes, it has {len(data) - at - 8:,}")
            return data[20 : 20 + chunk], data[at + 8 : at + 8 + size]
        at += 8 + size
    return data[20 : 20 + chunk], b""
