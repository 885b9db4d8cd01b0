"""Computing with meshes and point clouds; nothing here knows a dataset or a model.

Files to meshes: `meshes`, by the readers in `formats`. Closed surfaces: `watertight`, which tries `mesh_union` first. Solids by
construction: `convex_parts`. Inside or outside: `ray_crossings`. Points and poses: `surface_sampling`, `poses`. Fields to meshes: `field_grid`, then `surface_extraction`. Pictures:
`renders`.
"""
