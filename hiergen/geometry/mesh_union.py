"""The exact way to a closed surface: cap flat holes, orient every part outward, unite the parts.

Works on the many assets that are closed parts stuck into each other, or lack only faces that nobody sees. It keeps every corner.
Whatever it cannot do is left to `hiergen.geometry.watertight`, which remeshes.

Letters: `f` faces, `e` edges.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from hiergen.geometry.ray_crossings import contains
from hiergen.geometry.surface_sampling import sample_surface

if TYPE_CHECKING:
    import trimesh

#: A hole is flat if its rim stays this close to a plane, as a share of the rim's size.
FLATNESS = 0.03
#: A part with less volume than this share of area ** 1.5 is a sheet, for which inside means nothing.
SHEET_VOLUME = 1e-3
#: Holes that are not flat are closed up to this share of the mesh's area.
SMALL_HOLE = 0.15
#: Step off the surface at which its two sides are probed, for shapes about 2 across.
PROBE_STEP = 1e-3
#: Surface points that are probed.
NUM_PROBES = 2000


def unite_parts(mesh: trimesh.Trimesh) -> trimesh.Trimesh | None:
    """Return the boundary of the union of a mesh's closed parts, or None if a part is open, inconsistent or a mere sheet.

    Parts turned inside out are turned back, so that closed cavities are filled: nothing outside can see them.
    """
    import trimesh

    parts = split_parts(mesh)
    for part in parts:
        if not (part.is_watertight and part.is_winding_consistent):
            return None
        # trimesh computes the center of mass too, and a sheet has none.
        with np.errstate(divide="ignore", invalid="ignore"):
            volume = part.volume
        if abs(volume) < SHEET_VOLUME * part.area**1.5:
            return None
        if volume < 0:
            part.invert()
    if len(parts) == 1:
        return parts[0]
    if importlib.util.find_spec("manifold3d") is None:
        return None
    import manifold3d

    solids = []
    for part in parts:
        body = manifold3d.Mesh64(np.asarray(part.vertices, np.float64), np.asarray(part.faces, np.uint64))
        solid = manifold3d.Manifold(body)
        if solid.status() != manifold3d.Error.NoError:
            return None
        solids.append(solid)
    united = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add).to_mesh64()
    result = trimesh.Trimesh(np.asarray(united.vert_properties)[:, :3], np.asarray(united.tri_verts), process=False)
    return result if len(result.faces) and result.is_watertight else None


def split_parts(mesh: trimesh.Trimesh) -> list[trimesh.Trimesh]:
    """Return the parts of a mesh that share no edge, in the order of their first face; each keeps the order of its faces."""
    from trimesh.graph import connected_component_labels

    # `Trimesh.split` returns the faces of a part in an order that depends on the machine's sort.
    labels = connected_component_labels(mesh.face_adjacency, node_count=len(mesh.faces))
    masks = [labels == part for part in range(labels.max() + 1)]
    return mesh.submesh(masks, repair=False)  # type: ignore[return-value]  # a list unless they are appended


def cap_flat_holes(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, int]:
    """Return the mesh with every flat hole closed by a fan around the center of its rim, and how many were.

    A rim that crosses itself, or that lies in no plane, is left open.
    """
    import trimesh

    vertices, faces = [np.asarray(mesh.vertices)], [np.asarray(mesh.faces)]
    count = len(mesh.vertices)
    loops = [loop for loop in hole_rims(mesh) if _is_flat(vertices[0][loop])]
    for number, loop in enumerate(loops):
        center = count + number
        vertices.append(vertices[0][loop].mean(axis=0)[None])
        faces.append(np.stack([loop, np.roll(loop, -1), np.full(len(loop), center)], axis=1))
    if not loops:
        return mesh, 0
    return trimesh.Trimesh(np.concatenate(vertices), np.concatenate(faces), process=False), len(loops)


def cap_small_holes(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, int]:
    """Return the mesh with every small hole closed, flat or not, and how many were.

    Each edge of a rim gets a triangle to the rim's center; rims that touch are one. A hole is small if these triangles have at
    most `SMALL_HOLE` of the mesh's area.
    """
    import trimesh
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    edges = _single_edges(mesh)
    if not len(edges):
        return mesh, 0
    links = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    rim = np.unique(connected_components(links, directed=False)[1][edges[:, 0]], return_inverse=True)[1]
    counts = np.bincount(rim)
    middles = vertices[edges].mean(axis=1)
    center = np.stack([np.bincount(rim, middles[:, axis]) / counts for axis in range(3)], axis=1)
    caps = np.concatenate([vertices[edges], center[rim][:, None]], axis=1)
    areas = np.linalg.norm(np.cross(caps[:, 1] - caps[:, 0], caps[:, 2] - caps[:, 0]), axis=1) / 2
    is_small = np.bincount(rim, areas) <= SMALL_HOLE * mesh.area
    chosen = is_small[rim]
    added = np.column_stack([edges[chosen], len(vertices) + rim[chosen]])
    closed = trimesh.Trimesh(np.concatenate([vertices, center]), np.concatenate([faces, added]), process=False)
    closed.remove_unreferenced_vertices()
    return closed, int(is_small.sum())


def hole_rims(mesh: trimesh.Trimesh) -> list[Int64[np.ndarray, " n"]]:
    """Return the rims of holes as loops of vertices, directed so that faces along them continue the surface's orientation."""
    edges = _single_edges(mesh)
    # Where rims touch, which way to go on is anybody's guess.
    start, times = np.unique(edges[:, 0], return_counts=True)
    clear = np.isin(edges[:, 0], start[times == 1])
    following = dict(edges[clear].tolist())
    rims = []
    while following:
        first, vertex = next(iter(following.items()))
        loop = [first]
        del following[first]
        while vertex in following:
            loop.append(vertex)
            vertex = following.pop(vertex)
        if vertex == first and len(loop) >= 3:
            rims.append(np.array(loop, np.int64))
    return rims


def surface_consistency(mesh: trimesh.Trimesh, *, rng: np.random.Generator) -> float:
    """Return the share of surface points with inside behind and outside before them: 1 for the boundary of a solid.

    Faces buried in the solid, inside-out parts and walls thinner than 0.001 lower it.
    """
    points, normals, _ = sample_surface(mesh.triangles, NUM_PROBES, rng=rng)
    probes = np.concatenate([points - PROBE_STEP * normals, points + PROBE_STEP * normals])
    behind, before = contains(mesh.triangles, probes).reshape(2, -1)
    return float((behind & ~before).mean())


def _single_edges(mesh: trimesh.Trimesh) -> Int64[np.ndarray, "e 2"]:
    """Return the edges of one face only, directed as the missing face would have them."""
    from trimesh.grouping import group_rows

    return mesh.edges[group_rows(mesh.edges_sorted, require_count=1)][:, ::-1]


def _is_flat(rim: np.ndarray) -> bool:
    centered = rim - rim.mean(axis=0)
    size = float(np.linalg.norm(np.ptp(rim, axis=0)))
    normal = np.linalg.svd(centered, full_matrices=False)[2][2]
    return size > 0 and float(np.abs(centered @ normal).max()) <= FLATNESS * size
